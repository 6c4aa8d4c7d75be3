"""When a training ends early, what is held while it runs, and the schedule that follows validation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from dcaecore import VARIANTS, ConfigError, NullCallbacks, latest_checkpoint, train
from dcaecore.freezing import check_parts, part_names, phase_parts
from dcaecore.stopping import StopRule
from dcaecore.train_settings import TrainSettings
from tests.dcaecore.test_trainer import QUICK, Recorder, cache, parts, pinned, stream, tiny  # noqa: F401 - fixtures

LONG = replace(QUICK, n_epochs=8, steps_per_epoch=2)


def test_patience_counts_validations_without_a_gain():
    rule = StopRule(TrainSettings(patience=2, min_gain=0.1), sign=1)
    assert [rule.observe(value) for value in (20.0, 20.2, 20.25, 20.15)] == ["", "", "", "no gain in 2 validations"]
    lower = StopRule(TrainSettings(patience=1), sign=-1)
    assert [lower.observe(value) for value in (1.0, 0.9, None, 0.9)] == ["", "", "", "no gain in 1 validations"]
    never = StopRule(TrainSettings(), sign=1)
    assert not any(never.observe(1.0) for _ in range(50))


def test_the_goal_ends_it_in_either_direction():
    assert not StopRule(TrainSettings(stop_value=30.0), sign=1).observe(29.9)
    assert "as good as asked for" in StopRule(TrainSettings(stop_value=30.0), sign=1).observe(30.0)
    assert "as good as asked for" in StopRule(TrainSettings(stop_value=0.1), sign=-1).observe(0.05)


def test_a_training_without_gain_ends_validated_and_says_why(stream, pinned):  # noqa: F811
    seen = Recorder()
    result = train(tiny(), replace(LONG, patience=2, min_gain=100.0), stream, pinned, callbacks=seen)
    assert result.status == "done" and result.steps == 6 and result.stopped == "no gain in 2 validations"
    assert [step for step, _ in seen.evals] == [0, 2, 4, 6]
    assert train(tiny(), replace(LONG, stop_value=0.0), stream, pinned).steps == 2
    whole = train(tiny(), LONG, stream, pinned)
    assert (whole.steps, whole.stopped) == (16, "")


def test_the_time_budget_counts_over_resumes_and_not_while_paused(stream, pinned, tmp_path):  # noqa: F811
    settings = replace(LONG, max_seconds=60.0)

    def clock():
        moments = itertools.count(0, 10)  # two looks a step, so 10 s each
        return lambda: float(next(moments))

    first = train(
        tiny(), settings, stream, pinned, folder=tmp_path, callbacks=Recorder({4: "pause"}, answer="release"), clock=clock()
    )
    assert first.status == "released" and first.steps == 4
    second = train(tiny(), settings, stream, pinned, folder=tmp_path, resume_from=latest_checkpoint(tmp_path), clock=clock())
    assert second.steps == 6 and second.stopped == "the 60 s of training are spent"


def test_a_training_that_had_ended_when_it_was_killed_does_not_go_on(stream, pinned, tmp_path):  # noqa: F811
    settings = replace(LONG, patience=1, min_gain=100.0, save_interval=1)
    ended = train(tiny(), settings, stream, pinned, folder=tmp_path)
    again = train(tiny(), settings, stream, pinned, folder=tmp_path, resume_from=latest_checkpoint(tmp_path))
    assert again.steps == ended.steps == 4 and again.stopped == ended.stopped
    assert all(torch.equal(value, ended.state[name]) for name, value in again.state.items())


def test_the_rate_falls_where_validation_gains_nothing(stream, pinned, tmp_path):  # noqa: F811
    settings = replace(
        LONG, lr_schedule_name="plateau", lr_patience=0, lr_gamma=0.5, min_gain=100.0, min_lr=2e-4, save_interval=1
    )
    whole = Recorder()
    train(tiny(), settings, stream, pinned, callbacks=whole)
    rates = [metrics["learning_rate"] for metrics in whole.steps.values()]
    assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 2 + [2.5e-4] * 2 + [2e-4] * 8)
    train(tiny(), settings, stream, pinned, folder=tmp_path, callbacks=Recorder({7: "cancel"}))
    resumed = Recorder()
    train(tiny(), settings, stream, pinned, folder=tmp_path, callbacks=resumed, resume_from=latest_checkpoint(tmp_path))
    assert [m["learning_rate"] for m in resumed.steps.values()] == rates[7:]


def test_parts_by_name_are_held_to_the_bit(stream, pinned):  # noqa: F811
    config = VARIANTS["tiny"]
    names = part_names(config)
    held = ("encoder.conv_in", "decoder.stages.2", "decoder.conv_out")
    assert set(held) < set(names)
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, replace(QUICK, frozen_stages=held), stream, pinned)
    still = (*(f"{name}." for name in held), "decoder.norm_out.")
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(still) for name in moved)
    assert all(any(name.startswith(f"{part}.") for name in moved) for part in names if part not in held)
    with pytest.raises(ConfigError, match="no part 'encoder.stages.9'") as caught:
        train(tiny(), replace(QUICK, frozen_stages=("encoder.stages.9",)), stream, pinned)
    assert "encoder.conv_in" in caught.value.legal
    with pytest.raises(ConfigError, match="nothing would train"):
        check_parts(config, names)
    with pytest.raises(ConfigError, match="nothing would train"):
        decoder = tuple(name for name in names if name.startswith("decoder"))
        train(tiny(), replace(QUICK, frozen_part="encoder", frozen_stages=decoder), stream, pinned, callbacks=NullCallbacks())


def test_every_parameter_lies_in_a_part_and_each_phase_trains_what_the_paper_says():
    for config in (VARIANTS["tiny"], VARIANTS["dc-ae-f64c128-in"]):
        names = part_names(config)
        last = config.encoder.num_stages - 1
        trained = [set(names) - set(phase_parts(config, phase)) for phase in (1, 2, 3)]
        assert trained[0] == set(names)
        assert trained[1] == {f"encoder.stages.{last}", "encoder.conv_out", "decoder.conv_in", f"decoder.stages.{last}"}
        assert trained[2] == {f"decoder.stages.{config.decoder.first_stage}", "decoder.conv_out"}
    covered = (*(f"{name}." for name in part_names(VARIANTS["tiny"])), "decoder.norm_out.")
    assert all(name.startswith(covered) for name, _ in tiny().named_parameters())
    with pytest.raises(ConfigError, match="no phase 4"):
        phase_parts(VARIANTS["tiny"], 4)
