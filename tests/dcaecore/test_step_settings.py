"""How a step is computed: in parts, with activations computed again, compiled. What it reaches is told by the plain step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dcaecore import ConfigError, train
from tests.dcaecore.test_trainer import QUICK, Recorder, cache, parts, pinned, stream, tiny  # noqa: F401 - fixtures


def largest_difference(one, two) -> float:
    return max(float((value.double() - two[name].double()).abs().max()) for name, value in one.items())


def test_a_batch_in_parts_gives_the_gradients_of_the_whole(stream, pinned):  # noqa: F811
    settings = replace(QUICK, optimizer_name="sgd", momentum=0.0)
    whole, parted = Recorder(), Recorder()
    one = train(tiny(), settings, stream, pinned, callbacks=whole)
    two = train(tiny(), replace(settings, accumulation_steps=2), stream, pinned, callbacks=parted)
    assert largest_difference(one.state, two.state) < 1e-6
    for step, metrics in whole.steps.items():
        for key in ("loss", "grad_norm", "loss_l1"):
            assert parted.steps[step][key] == pytest.approx(metrics[key], rel=1e-4)
    with pytest.raises(ConfigError, match="does not divide into 3 parts") as caught:
        train(tiny(), replace(QUICK, accumulation_steps=3), stream, pinned)
    assert caught.value.legal == [1, 2]


def test_activations_computed_again_give_the_same_bits_and_leave_the_model_as_it_was(stream, pinned, monkeypatch):  # noqa: F811
    import dcaecore.recompute as recompute

    calls = []
    real = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *given, **options: calls.append(1) or real(*given, **options))
    model = tiny()
    one = train(tiny(), QUICK, stream, pinned)
    assert not calls
    two = train(model, replace(QUICK, recompute=True), stream, pinned)
    stages = len(model.encoder.stages) + len(model.decoder.stages)
    assert len(calls) == stages * 4 and not any("forward" in stage.__dict__ for stage in model.encoder.stages)
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())


# torch's own compiler imports what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_to_nearly_the_same_weights(stream, pinned):  # noqa: F811
    settings = replace(QUICK, n_epochs=1, optimizer_name="sgd", momentum=0.0)
    one = train(tiny(), settings, stream, pinned)
    two = train(tiny(), replace(settings, compile_model=True), stream, pinned)
    assert list(one.state) == list(two.state) and largest_difference(one.state, two.state) < 1e-5
