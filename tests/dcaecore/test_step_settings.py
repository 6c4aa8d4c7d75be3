"""How a step is computed: in parts, with activations computed again, compiled. What it reaches is told by the plain step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dcaecore import ConfigError, latest_checkpoint, train
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
@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_to_nearly_the_same_weights_and_resumes_to_the_same_bits(stream, pinned, tmp_path):  # noqa: F811
    settings = replace(QUICK, n_epochs=1, optimizer_name="sgd", momentum=0.9)
    one = train(tiny(), settings, stream, pinned)
    compiled = replace(settings, compile_model=True)
    two = train(tiny(), compiled, stream, pinned)
    assert list(one.state) == list(two.state) and largest_difference(one.state, two.state) < 1e-5
    stopped = train(tiny(), compiled, stream, pinned, folder=tmp_path, callbacks=Recorder({1: "cancel"}))
    resumed = train(tiny(1), compiled, stream, pinned, folder=tmp_path, resume_from=latest_checkpoint(tmp_path))
    assert stopped.steps == 1 and resumed.steps == 2
    assert all(torch.equal(value, resumed.state[name]) for name, value in two.state.items())


@pytest.mark.parametrize(
    ("device", "missing", "words"),
    [
        ("cpu", "compiler", "no compiler 'nowhere-to-be-found'"),
        ("cpu", "headers", "Python.h"),
        ("cuda:0", "triton", "`triton` is not installed"),
        ("cuda:0", "compiler", "no compiler 'nowhere-to-be-found'"),
    ],
)
def test_without_a_compiler_it_is_refused_before_anything_runs(monkeypatch, device, missing, words, stream, pinned):  # noqa: F811
    import dcaecore.compiling as compiling

    monkeypatch.setattr(compiling.shutil, "which", lambda name: None if "nowhere" in name else f"/bin/{name}")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None if missing == name else object())
    monkeypatch.setattr(compiling.Path, "exists", lambda self: missing != "headers")
    if missing == "compiler":
        for name in ("CC", "CXX"):
            monkeypatch.setenv(name, "nowhere-to-be-found")
    with pytest.raises(ConfigError, match=words) as caught:
        compiling.check_compiler(device)
    assert caught.value.code == "no_compiler"
    if device == "cpu":
        with pytest.raises(ConfigError, match=words):
            train(tiny(), replace(QUICK, compile_model=True), stream, pinned)
