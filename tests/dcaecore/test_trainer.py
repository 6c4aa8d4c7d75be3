"""The training loop: masks, the average, best and last, schedules, losses that are not finite, control."""

from __future__ import annotations

import copy
import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dcaecore import (
    DCAE,
    VARIANTS,
    BatchStream,
    ConfigError,
    DataSource,
    ImageCache,
    NullCallbacks,
    TrainingError,
    TrainSettings,
    latest_checkpoint,
    open_frames,
    pin,
    split_rows,
    train,
)
from dcaecore.checkpoints import load_checkpoint
from dcaecore.optim import MIXING, OPTIMIZERS, MovingAverage, WeightMasks, make_optimizer, parameter_groups

SIZE = 32
QUICK = TrainSettings(n_epochs=2, steps_per_epoch=2, warmup_epochs=0, init_lr=1e-3)


@pytest.fixture(scope="module")
def cache(data_dir):
    return ImageCache(open_frames(DataSource(), cache_folder=data_dir), SIZE)


@pytest.fixture(scope="module")
def parts(cache):
    return split_rows(cache.frames, seed=0)


@pytest.fixture
def stream(cache, parts):
    return BatchStream(cache, parts.train, batch_size=2, seed=0)


@pytest.fixture(scope="module")
def pinned(cache, parts):
    return pin(cache, parts.validation, 16)


def tiny(seed: int = 0) -> DCAE:
    torch.manual_seed(seed)
    return DCAE(VARIANTS["tiny"])


def masks_of(model: nn.Module, share: float = 0.5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.rand(p.shape, generator=generator) > share for n, p in model.named_parameters() if p.ndim > 1}


def leaks(state, masks) -> int:
    return sum(int((state[name][~mask] != 0).sum()) for name, mask in masks.items())


class Recorder(NullCallbacks):
    """Keeps what it is told; `asked` maps a poll's number (from 0) to a control."""

    def __init__(self, asked=None, answer="run"):
        self.asked, self.answer, self.polls = asked or {}, answer, 0
        self.steps, self.evals, self.saved, self.lines = {}, [], [], []

    def poll(self):
        self.polls += 1
        return self.asked.get(self.polls - 1, "run")

    def wait_paused(self):
        return self.answer

    def on_step(self, step, metrics):
        self.steps[step] = metrics

    def on_eval(self, step, scores):
        self.evals.append((step, scores.means))

    def on_checkpoint(self, path, step, why):
        self.saved.append((step, why))

    def log(self, level, message):
        self.lines.append((level, message))


# Failure 1: pruning masks were lost in retraining: 50 % sparse became 0.01 % sparse after 100 steps.
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_masks_survive_a_hundred_steps_with_decay_and_average(stream, pinned, tmp_path, optimizer):
    model = tiny()
    masks = masks_of(model)
    settings = replace(
        QUICK, n_epochs=2, steps_per_epoch=50, optimizer_name=optimizer, weight_decay=0.1, ema_decay=0.9, eval_interval=2
    )
    result = train(model, settings, stream, pinned, masks=masks, folder=tmp_path)
    assert result.steps == 100
    assert leaks(result.state, masks) == 0 and leaks(model.state_dict(), masks) == 0
    zeros = sum(int((result.state[name] == 0).sum()) for name in masks)
    assert zeros == sum(int((~mask).sum()) for mask in masks.values())
    saved = latest_checkpoint(tmp_path)
    assert saved is None or leaks(load_checkpoint(saved).ema, masks) == 0


def test_pruning_in_the_middle_of_a_training_leaves_no_leak(stream, pinned, tmp_path):
    """Moments gathered before the mask would refill the zeros: they are masked when the run goes on."""
    model = tiny()
    first = replace(QUICK, n_epochs=1, steps_per_epoch=6, save_interval=1, ema_decay=0.5)
    train(model, first, stream, pinned, folder=tmp_path)
    masks = masks_of(model)
    result = train(
        tiny(), replace(first, n_epochs=4), stream, pinned, masks=masks, resume_from=latest_checkpoint(tmp_path), folder=tmp_path
    )
    state = load_checkpoint(latest_checkpoint(tmp_path))
    assert result.steps == 24 and leaks(state.model, masks) == 0
    for name, mask in masks.items():
        assert not state.optimizer[f"{name}:exp_avg"][~mask].any()
    # The average holds what the weights were before the pruning, and masks hold there too.
    assert leaks(state.ema, masks) == 0 and leaks(result.state, masks) == 0


def test_a_masked_weight_counts_in_no_gradient_norm(stream, pinned):
    norms = []
    for masked in (False, True):
        model, seen = tiny(), Recorder()
        masks = {"decoder.conv_out.conv.weight": torch.zeros_like(model.decoder.conv_out.conv.weight, dtype=torch.bool)}
        if not masked:
            with torch.no_grad():
                model.decoder.conv_out.conv.weight.zero_()
        train(model, replace(QUICK, n_epochs=1, steps_per_epoch=1), stream, pinned, masks=masks if masked else {}, callbacks=seen)
        norms.append(seen.steps[1]["grad_norm"])
    assert 0 < norms[1] < norms[0]


def test_masks_that_do_not_fit_are_refused(stream, pinned):
    with pytest.raises(ConfigError, match="which the model has not"):
        train(tiny(), QUICK, stream, pinned, masks={"nothing": torch.ones(1)})
    with pytest.raises(ConfigError, match="does not fit"):
        train(tiny(), QUICK, stream, pinned, masks={"encoder.conv_out.weight": torch.ones(1)})


# Failure 4: the best checkpoint was never saved. Failure 6: PSNR accumulated. Failure 8: metrics were strings.
def test_the_best_weights_are_kept_and_figures_are_numbers_of_their_own_evaluation(stream, pinned, tmp_path):
    # A rate that first helps and then ruins: the best validation is not the last.
    settings = replace(QUICK, n_epochs=6, steps_per_epoch=5, lr_schedule_name="constant", init_lr=3e-3, save_interval=6)

    class Ruin(Recorder):
        def on_eval(self, step, scores):
            super().on_eval(step, scores)
            if step == 20:
                with torch.no_grad():
                    model.decoder.conv_out.conv.weight.mul_(-3)

    model, seen = tiny(), Ruin()
    result = train(model, settings, stream, pinned, folder=tmp_path, callbacks=seen)
    values = {step: means["psnr_db"] for step, means in seen.evals}
    best = max((step for step in values if step > 0), key=lambda step: values[step])
    assert result.best_step == best < 30 and result.best_value == values[best]
    assert load_checkpoint(latest_checkpoint(tmp_path)).facts["best_step"] == best
    kept, last = DCAE(VARIANTS["tiny"]), copy.deepcopy(model)
    kept.load_state_dict(result.state)
    alone = Recorder()
    train(kept, replace(settings, n_epochs=1, steps_per_epoch=1), stream, pinned, callbacks=alone)
    assert alone.evals[0][1]["psnr_db"] == pytest.approx(values[best], abs=1e-3)
    again = Recorder()
    train(last, replace(settings, n_epochs=1, steps_per_epoch=1), stream, pinned, callbacks=again)
    assert again.evals[0][1]["psnr_db"] == pytest.approx(values[30], abs=1e-3)
    figures = [*seen.steps.values(), *(means for _, means in seen.evals)]
    assert all(type(value) is float and math.isfinite(value) for means in figures for value in means.values())
    assert max(values.values()) < 40


def test_last_and_best_differ_by_setting(stream, pinned):
    found = {}
    for keep in ("best", "last"):
        model = tiny()

        class Ruin(Recorder):
            def on_eval(self, step, scores, model=model):
                super().on_eval(step, scores)
                if step == 4:
                    with torch.no_grad():
                        model.decoder.conv_out.conv.weight.mul_(-50)

        found[keep] = train(model, replace(QUICK, n_epochs=3, keep=keep), stream, pinned, callbacks=Ruin())
    assert found["best"].best_step == found["last"].best_step == 4
    assert float(found["last"].state["decoder.conv_out.conv.weight"].abs().max()) > 1
    assert float(found["best"].state["decoder.conv_out.conv.weight"].abs().max()) < 1


def test_what_is_kept_is_the_average(stream, pinned):
    model = tiny()
    result = train(model, replace(QUICK, ema_decay=0.9, keep="last"), stream, pinned)
    live = model.state_dict()
    assert all(not torch.equal(result.state[name], live[name]) for name in ("encoder.conv_out.weight",))
    plain = tiny()
    average = MovingAverage(plain, 0.9)
    with torch.no_grad():
        before = plain.encoder.conv_out.weight.clone()
        plain.encoder.conv_out.weight.add_(1.0)
    average.update(1)
    weight = 1 - min(0.9, 2 / 11)
    found = average.state["encoder.conv_out.weight"]
    assert torch.allclose(found, before + weight, atol=1e-6)


# Failure 5: images in [0, 1] where the model wants [-1, 1].
def test_the_model_sees_minus_one_to_one(stream, pinned):
    seen = []
    model = tiny()
    model.register_forward_pre_hook(lambda _module, args: seen.append((float(args[0].min()), float(args[0].max()))))
    train(model, replace(QUICK, n_epochs=1, steps_per_epoch=1), stream, pinned)
    assert len(seen) == 2 * math.ceil(len(pinned) / 8) + 1
    assert all(-1.0 <= low < -0.9 and 0.3 < high <= 1.0 for low, high in seen)


# Failure 9: the optimizer was not rebuilt after pruning, so it trained orphaned parameters.
def test_the_optimizer_holds_the_parameters_that_the_model_has_now(stream, pinned):
    model = tiny()
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)  # as surgery: new objects
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, replace(QUICK, n_epochs=1, steps_per_epoch=1), stream, pinned)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters() if p.ndim > 1)
    held = {id(p) for group in make_optimizer(model, QUICK).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_norms_and_biases_are_spared_from_decay_unless_asked(stream):
    model = tiny()
    groups = parameter_groups(model, weight_decay=0.1, decay_norms_and_biases=False)
    assert {p.ndim > 1 for p in groups[0]["params"]} == {True} and groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0
    (everything,) = parameter_groups(model, weight_decay=0.1, decay_norms_and_biases=True)
    assert len(everything["params"]) == len(list(model.parameters()))
    with pytest.raises(ConfigError, match="no optimizer"):
        make_optimizer(model, replace(QUICK, optimizer_name="lion"))
    bare = nn.Conv2d(1, 1, 1)
    masks = WeightMasks(dict(bare.named_parameters()), {"weight": torch.zeros(1, 1, 1, 1)})
    masks.mask_gradients()
    masks.mask_weights()
    assert not bare.weight.detach().any() and bare.bias.detach().any()


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name not in MIXING])
def test_masked_gradients_alone_keep_each_optimizer_from_moving_a_masked_weight(optimizer):
    model = tiny()
    parameters = dict(model.named_parameters())
    settings = replace(QUICK, optimizer_name=optimizer, init_lr=0.1, weight_decay=0.3, decay_norms_and_biases=True)
    masks = {name: torch.rand_like(p) > 0.5 for name, p in parameters.items()}
    kept = WeightMasks(parameters, masks)
    kept.mask_weights()
    moved = make_optimizer(model, settings)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for _ in range(4):
        for p in parameters.values():
            p.grad = torch.randn_like(p)
        kept.mask_gradients()
        moved.step()
    for name, p in parameters.items():
        assert not p.detach()[~masks[name]].any()
        assert (p.detach() != before[name])[masks[name]].all()


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_finite_names_the_step_and_the_images_and_spoils_no_checkpoint(stream, pinned, tmp_path, late):
    model, seen, forwards = tiny(), Recorder(), []

    def spoil(module, args):
        forwards.append(module.training)
        return (args[0] * float("nan"),) if sum(forwards) == 5 else None

    model.register_forward_pre_hook(spoil)
    settings = replace(QUICK, n_epochs=5, save_interval=1, eval_interval=5, ema_decay=0.5)
    with pytest.raises(TrainingError, match="not finite at step 5") as caught:
        train(model, settings, stream, pinned, folder=tmp_path, callbacks=seen, late_reports=late)
    assert caught.value.code == "not_finite" and "checkpoint" in caught.value.next
    assert all(row in caught.value.message for row in stream.batch(4).row_ids)
    assert list(seen.steps) == [1, 2, 3, 4]
    saved = load_checkpoint(latest_checkpoint(tmp_path))
    assert saved.step == 4
    for state in (saved.model, saved.ema, saved.optimizer):
        assert state and all(torch.isfinite(value).all() for value in state.values())


def test_late_reports_change_nothing_but_the_time(stream, pinned, tmp_path):
    records = []
    for late in (False, True):
        seen = Recorder(asked={3: "checkpoint"})
        result = train(tiny(), QUICK, stream, pinned, callbacks=seen, folder=tmp_path / str(late), late_reports=late)
        records.append((seen, result))
    (first, one), (second, two) = records
    assert list(first.steps) == list(second.steps) == [1, 2, 3, 4]
    for step, metrics in first.steps.items():
        assert metrics["loss"] == second.steps[step]["loss"] and metrics["learning_rate"] == second.steps[step]["learning_rate"]
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
    assert first.saved == second.saved == [(3, "asked"), (4, "end")]


def test_pause_cancel_and_checkpoint_are_answered_before_the_next_step(stream, pinned, tmp_path):
    seen = Recorder(asked={1: "checkpoint", 2: "pause", 3: "cancel"})
    result = train(tiny(), QUICK, stream, pinned, callbacks=seen, folder=tmp_path)
    assert result.status == "cancelled" and result.steps == 3
    assert seen.saved == [(1, "asked"), (2, "pause"), (3, "cancel")]
    released = train(tiny(), QUICK, stream, pinned, callbacks=Recorder({1: "pause"}, answer="release"), folder=tmp_path / "r")
    assert released.status == "released" and released.steps == 1
    stopped = train(tiny(), QUICK, stream, pinned, callbacks=Recorder({1: "pause"}, answer="cancel"))
    assert stopped.status == "cancelled" and stopped.steps == 1


def test_a_checkpoint_a_minute_whatever_the_interval_says(stream, pinned, tmp_path):
    moments = iter(range(0, 100_000, 25))
    seen = Recorder()
    settings = replace(QUICK, n_epochs=1, steps_per_epoch=8, save_interval=5)
    train(tiny(), settings, stream, pinned, callbacks=seen, folder=tmp_path, clock=lambda: float(next(moments)))
    assert len(seen.saved) >= 3 and all(why == "interval" for _, why in seen.saved[:-1])
    assert len(list(tmp_path.glob("step_*"))) <= 2


@pytest.mark.parametrize(("patience", "last"), [(0, 8), (1, 4)])
def test_the_last_weights_stay_as_a_checkpoint_however_the_training_ends(stream, pinned, tmp_path, patience, last):
    seen = Recorder()
    settings = replace(
        QUICK, n_epochs=4, steps_per_epoch=2, save_interval=100, patience=patience, min_gain=900.0 if patience else 0.0
    )
    assert train(tiny(), settings, stream, pinned, callbacks=seen, folder=tmp_path).steps == seen.saved[-1][0]
    assert [why for _, why in seen.saved] == ["end"] and load_checkpoint(latest_checkpoint(tmp_path)).step <= last


def test_validations_fall_on_whole_epochs_and_at_the_end_and_text_on_its_interval(stream, pinned):
    seen = Recorder()
    train(tiny(), replace(QUICK, n_epochs=5, eval_interval=2, log_interval=4), stream, pinned, callbacks=seen)
    assert [step for step, _ in seen.evals] == [0, 4, 8, 10]
    assert [line.split(":")[0] for level, line in seen.lines if level == "info"] == ["step 4", "step 8", "step 10"]
    assert list(seen.steps) == list(range(1, 11))


def test_best_by_a_figure_that_cannot_be_is_said_so(stream, cache, parts):
    few = pin(cache, parts.validation, 4)
    seen = Recorder()
    result = train(tiny(), replace(QUICK, best_metric="foreground_psnr_db"), stream, few, callbacks=seen)
    assert any(level == "warning" and "best is by PSNR" in line for level, line in seen.lines)
    assert result.best_value == dict(seen.evals)[result.best_step]["psnr_db"]
    with pytest.raises(ConfigError, match="no figure"):
        train(tiny(), replace(QUICK, best_metric="beauty"), stream, few)


def batchnorm_model() -> DCAE:
    torch.manual_seed(0)
    config = VARIANTS["tiny"]
    decoder = replace(config.decoder, norms=("bn2d",) * 4, acts=("relu",) * 4)
    return DCAE(replace(config, decoder=decoder))


def test_batchnorm_keeps_its_statistics_unless_asked_and_where_its_part_is_frozen(stream, pinned):
    found = {}
    for batchnorm, frozen in (("frozen", "none"), ("train", "none"), ("train", "decoder")):
        model = batchnorm_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        result = train(model, replace(QUICK, batchnorm=batchnorm, frozen_part=frozen), stream, pinned)
        found[batchnorm, frozen] = {name for name, value in result.state.items() if not torch.equal(value, before[name])}
    assert not any("running" in name for name in found["frozen", "none"])
    assert any("running" in name for name in found["train", "none"])
    assert not any(name.startswith("decoder") for name in found["train", "decoder"])
    assert any(name.startswith("encoder") for name in found["train", "decoder"])


def test_broken_rows_are_counted(cache, pinned, parts, monkeypatch):
    from dcaecore.errors import DataError

    bad = int(parts.train[3])
    plain = ImageCache.row

    def row(self, index):
        if index == bad:
            raise DataError("broken", code="broken_image")
        return plain(self, index)

    monkeypatch.setattr(ImageCache, "row", row)
    stream = BatchStream(cache, parts.train[:8], batch_size=2, seed=0, skip_broken=True)
    result = train(tiny(), replace(QUICK, n_epochs=1, steps_per_epoch=4), stream, pinned)
    assert result.skipped_rows == (cache.frames.row_ids[bad],)
    assert np.isfinite(result.best_value)


def test_the_perceptual_weight_joins_the_loss_where_lpips_can_be_had(stream, pinned, monkeypatch):
    import dcaecore.losses

    class Stub(nn.Module):
        """Stands for the package `lpips`, whose weights are a download."""

        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, output, target):
            return (output - target).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Stub))
    monkeypatch.setattr(dcaecore.losses, "lpips_status", lambda: (True, "available"))
    seen, states = {}, {}
    for weight in (0.0, 2.0):
        seen[weight] = Recorder()
        states[weight] = train(tiny(), replace(QUICK, perceptual_weight=weight), stream, pinned, callbacks=seen[weight]).state
    first, second = (seen[weight].steps[1] for weight in (0.0, 2.0))
    assert "loss_lpips" not in first and second["loss"] == pytest.approx(first["loss"] + 2 * second["loss_lpips"], rel=1e-5)
    assert any(not torch.equal(value, states[2.0][name]) for name, value in states[0.0].items())
