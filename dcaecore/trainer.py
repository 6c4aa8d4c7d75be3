"""The training loop: one model, one stream of batches, pinned validation images.

Notable choices:
- A step's batch is a function of (seed, step), and a checkpoint holds model, EMA, best weights and optimizer, so a resumed run
  reaches the same bits as one that was never stopped (same device, same thread count).
- Pruned weights stay pruned (see `optim`). The optimizer is built here, after any pruning, from the parameters of now.
- One synchronisation a step: loss and gradient norm come back in one copy. On CUDA that copy is read a step late, so the device
  never waits for Python; it is always read before a validation and before a checkpoint.
- A loss or gradient that is not finite stops the training before it can reach a checkpoint.
- Gradients of a well-trained model underflow, and denormal numbers are slow on a CPU: 2.4 s a step instead of 0.9 s (demo model,
  batch 8, 2 cores). Flushing them is a mode of the whole process, so it is left to whoever owns that: call
  `torch.set_flush_denormal(True)` before the first operation.
- Callbacks steer: `poll` is asked before each step, so pause, cancel and checkpoint are answered within one step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dcaecore.batches import Batch, BatchStream
from dcaecore.checkpoints import (
    TrainState,
    clean_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from dcaecore.distillation import Distillation, DistillWeights
from dcaecore.errors import CheckpointError, ConfigError, TrainingError
from dcaecore.freezing import check_parts, freeze, held_prefixes
from dcaecore.latents import LatentCache, pays
from dcaecore.layer_stats import LayerWatch
from dcaecore.losses import ReconstructionLoss
from dcaecore.metrics import ImageScores, evaluate_images
from dcaecore.model import DCAE
from dcaecore.optim import MovingAverage, WeightMasks, make_optimizer
from dcaecore.pinned import PinnedImages
from dcaecore.plateau import Plateau
from dcaecore.recompute import recomputed_stages
from dcaecore.stopping import StopRule
from dcaecore.train_settings import TrainSettings

CHECKPOINT_SECONDS = 60.0
HIGHER_IS_BETTER = {
    "psnr_db": True,
    "foreground_psnr_db": True,
    "ssim": True,
    "accuracy": True,
    "loss": False,
    "l1": False,
}


class TrainCallbacks(Protocol):
    """How a training reports and is steered."""

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        """Asked before each step."""

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        """Called once a pause is checkpointed; blocks until the run goes on, ends, or must free the device."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """After each step (counted from 1)."""

    def on_eval(self, step: int, scores: ImageScores) -> None:
        """After each validation; step 0 is the model as it came."""

    def on_layers(self, step: int, figures: dict[str, float]) -> None:
        """After each validation where `layer_stats` is on; see `dcaecore.layer_stats`."""

    def on_checkpoint(self, path: Path, step: int, why: str) -> None:
        """After a checkpoint is durable; `why` is pause, cancel, asked, interval or every (the `keep_every`-th epoch)."""

    def spared(self) -> Collection[str]:
        """Names of checkpoints that are not to be cleaned away."""

    def log(self, level: str, message: str) -> None:
        """A line for people; level as in `logging`."""


class NullCallbacks:
    """Callbacks that do nothing: runs to the end."""

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        return "run"

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        return "run"

    def on_step(self, step: int, metrics: dict[str, float]) -> None: ...

    def on_eval(self, step: int, scores: ImageScores) -> None: ...

    def on_layers(self, step: int, figures: dict[str, float]) -> None: ...

    def on_checkpoint(self, path: Path, step: int, why: str) -> None: ...

    def spared(self) -> Collection[str]:
        return ()

    def log(self, level: str, message: str) -> None: ...


@dataclass
class TrainResult:
    """How a training ended. `state` holds the weights to keep (best or last, EMA where it is on)."""

    status: Literal["done", "cancelled", "released"]
    steps: int
    state: dict[str, Tensor]
    best_step: int
    best_value: float | None
    skipped_rows: tuple[str, ...]
    stopped: str = ""
    """Why it ended before its last step; empty where it did not."""


@dataclass
class _Report:
    """A step whose figures may still be on their way from the device."""

    step: int
    """Counted from 1."""
    rate: float
    row_ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    """`(len(names),)` on the CPU: loss, gradient norm, parts of the loss."""
    arrived: torch.cuda.Event | None
    started: float

    def read(self) -> dict[str, float]:
        """The figures; raises TrainingError where the loss or the gradient is not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values = dict(zip(self.names, self.values.tolist(), strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            rows = ", ".join(self.row_ids[:8]) + (", ..." if len(self.row_ids) > 8 else "")
            raise TrainingError(
                f"The loss or its gradient is not finite at step {self.step} (images {rows}).",
                code="not_finite",
                given=values["loss"],
                next="The last checkpoint is whole: lower init_lr, clip the gradient, or use float32.",
            )
        return values


class _Run:
    """A training in progress: what `train` holds together."""

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        pinned: PinnedImages,
        masks: Mapping[str, Tensor],
        callbacks: TrainCallbacks,
        folder: Path | None,
        device: str,
        late_reports: bool | None,
        teacher: DCAE | None,
        stream: BatchStream,
    ) -> None:
        self.settings, self.pinned, self.callbacks, self.folder = settings, pinned, callbacks, folder
        self.device = torch.device(device)
        self.late = self.device.type == "cuda" if late_reports is None else late_reports
        # No slower on a CPU (1.03 s of processor time a step either way: demo model, batch 8, 128 px), and what tensor cores ask for.
        self.model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.held = held_prefixes(settings.frozen_part, settings.frozen_stages)
        if isinstance(model, DCAE):
            check_parts(model.config, settings.frozen_stages)
        freeze(self.model, self.held)
        parameters = dict(self.model.named_parameters())
        self.names = {id(p): name for name, p in parameters.items()}
        self.masks = WeightMasks(parameters, masks)
        self.masks.mask_weights()
        self.optimizer = make_optimizer(self.model, settings)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.loss = ReconstructionLoss(
            settings.reconstruction_loss,
            foreground_weight=settings.foreground_weight,
            perceptual_weight=settings.perceptual_weight,
        ).to(self.device)
        wanted = DistillWeights(settings.distill_output_weight, settings.distill_latent_weight, settings.distill_features_weight)
        if wanted.any and (teacher is None or not isinstance(self.model, DCAE)):
            raise ConfigError("Distillation needs a teacher.", code="no_teacher", next="Name one, or set its weights to 0.")
        self.distillation: Distillation | None = None
        if teacher is not None and wanted.any:
            teacher = teacher.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.distillation = Distillation(teacher, self.model, wanted)
        self.autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
        self.latents = self._latent_cache(stream)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if settings.compile_model else self.model
        if stream.batch_size % settings.accumulation_steps:
            raise ConfigError(
                f"A batch of {stream.batch_size} does not divide into {settings.accumulation_steps} parts.",
                given=settings.accumulation_steps,
                legal=[n for n in range(1, stream.batch_size + 1) if stream.batch_size % n == 0],
            )
        self.watch = LayerWatch(self.model) if settings.layer_stats and isinstance(self.model, DCAE) else None
        self.average = MovingAverage(self.model, settings.ema_decay)
        self.best: dict[str, Tensor] = {}
        self.best_value: float | None = None
        self.best_step = 0
        self.best_metric = settings.best_metric
        if self.best_metric not in HIGHER_IS_BETTER:
            raise ConfigError(f"There is no figure {self.best_metric!r}.", given=self.best_metric, legal=sorted(HIGHER_IS_BETTER))
        if self.best_metric == "foreground_psnr_db" and (pinned.foreground is None or not pinned.foreground.any()):
            self.best_metric = "psnr_db"
            reason = pinned.foreground_reason or "nothing moves in the pinned images"
            callbacks.log("warning", f"No foreground figure ({reason}): best is by PSNR.")
        sign = 1 if HIGHER_IS_BETTER[self.best_metric] else -1
        self.stop_rule, self.stopped = StopRule(settings, sign), ""
        self.plateau: Plateau | None = None
        if settings.lr_schedule_name == "plateau":
            self.plateau = Plateau(gamma=settings.lr_gamma, patience=settings.lr_patience, min_gain=settings.min_gain, sign=sign)
        self.step = 0
        self.skipped: set[str] = set()
        self.pending: _Report | None = None

    def _latent_cache(self, stream: BatchStream) -> LatentCache | None:
        """Where the encoder is frozen and nothing else asks for it, images that come again need not be encoded again."""
        model = self.model
        if self.settings.frozen_part != "encoder" or self.distillation is not None or not isinstance(model, DCAE):
            return None
        side = stream.cache.image_size // model.config.spatial_compression
        if not pays(stream, self.settings.total_steps, model.config.latent_channels * side * side * torch.float32.itemsize):
            return None
        return LatentCache(stream, lambda x: model.encode(self._on_device(x)))

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True, memory_format=torch.channels_last)

    def set_train_mode(self) -> None:
        """Training mode; BatchNorm keeps its statistics where they are frozen, or its whole part is."""
        self.model.train()
        for name, module in self.model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(self.settings.batchnorm == "train" and not (self.held and name.startswith(self.held)))

    def kept_weights(self) -> dict[str, Tensor]:
        """What would be kept if the run ended now: the moving average where it is on."""
        source = self.average.state or self.model.state_dict()
        return {name: value.detach().cpu().clone().contiguous() for name, value in source.items()}

    def validate(self) -> None:
        """Scores the weights that would be kept; remembers them where they are the best so far."""
        self.report()
        layers = {} if self.watch is None else self.watch.weights_and_gradients()
        live: dict[str, Tensor] = {}
        if self.average.state:
            live = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.model.load_state_dict(self.average.state)
        self.model.eval()
        with nullcontext(layers) if self.watch is None else self.watch.activations() as outputs:
            scores = evaluate_images(
                self.model, self.pinned, device=str(self.device), autocast=self.autocast, loss=self.loss, batch_size=8
            )
        if live:
            self.model.load_state_dict(live)
        self.set_train_mode()
        value = scores.means.get(self.best_metric)
        sign = 1 if HIGHER_IS_BETTER[self.best_metric] else -1
        if self.step > 0 and value is not None and (self.best_value is None or sign * value > sign * self.best_value):
            self.best_value, self.best_step, self.best = value, self.step, self.kept_weights()
        if self.step > 0:
            self.stopped = self.stop_rule.observe(value) or self.stopped
            if self.plateau is not None:
                self.plateau.observe(value)
        self.callbacks.on_eval(self.step, scores)
        if self.watch is not None:
            self.callbacks.on_layers(self.step, {**layers, **outputs})

    def checkpoint(self, why: str) -> None:
        """Writes all that the rest of the training depends on; nothing without a folder."""
        self.report()
        if self.folder is None:
            return
        facts = {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "skipped": sorted(self.skipped),
            "threads": torch.get_num_threads(),
            "random_state": torch.get_rng_state().numpy().tobytes().hex(),
            "next_batch": self.step,
            "stop_rule": self.stop_rule.facts(),
            "stopped": self.stopped,
            "plateau": None if self.plateau is None else self.plateau.facts(),
        }
        moments = optimizer_tensors(self.optimizer, self.names)
        state = TrainState(self.step, self.model.state_dict(), self.average.state, self.best, moments, facts)
        path = save_checkpoint(self.folder, state)
        self.callbacks.on_checkpoint(path, self.step, why)
        every = self.settings.keep_every * self.settings.steps_per_epoch
        clean_checkpoints(self.folder, every=every, spare=self.callbacks.spared())

    def restore(self, path: Path) -> None:
        """Goes back to a checkpoint. Raises CheckpointError where it is damaged, or of another model."""
        state = load_checkpoint(path)
        try:
            self.model.load_state_dict(state.model)
            self.average.restore(state.ema)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{path.name} is the checkpoint of another training: {error}", code="other_model", given=str(path)
            ) from error
        self.best = state.best
        restore_optimizer(self.optimizer, self.names, state.optimizer)
        self.masks.mask_weights()
        self.masks.mask_state(self.average.state)
        self.masks.mask_state(self.best)
        self.masks.mask_moments(self.optimizer)
        self.step = state.step
        self.best_value, self.best_step = state.facts["best_value"], state.facts["best_step"]
        self.skipped = set(state.facts["skipped"])
        if state.facts.get("stop_rule"):
            self.stop_rule.restore(state.facts["stop_rule"])
            self.stopped = state.facts["stopped"]
        if self.plateau is not None and state.facts.get("plateau"):
            self.plateau.restore(state.facts["plateau"])
        if "random_state" in state.facts:
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state.facts["random_state"]), dtype=torch.uint8))
        if state.facts["threads"] != torch.get_num_threads():
            self.callbacks.log("warning", "Resumed with another thread count: the last bits of the weights will differ.")

    def _accumulate(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Gathers the gradients of a batch, in so many parts of it as asked; returns the loss and its parts, detached."""
        x = self._on_device(batch.images_BCHW)
        seen = x if batch.seen_BCHW is None else self._on_device(batch.seen_BCHW)
        content = batch.content_B1HW.to(self.device, non_blocking=True)
        moving = batch.foreground_B1HW.to(self.device, non_blocking=True)
        latents = None if self.latents is None else self._on_device(self.latents.of(self.step, batch))
        count = self.settings.accumulation_steps
        total, sums = torch.zeros((), device=self.device), dict[str, Tensor]()
        size = len(x) // count
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            loss, parts = self._loss_of(
                x[rows], seen[rows], content[rows], moving[rows], None if latents is None else latents[rows]
            )
            (loss / count).backward()
            total += loss.detach() / count
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.detach() / count
        return total, sums

    def _loss_of(
        self, x: Tensor, seen: Tensor, content: Tensor, moving: Tensor, latents: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of images and its parts, with gradients."""
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            if self.distillation is not None:
                y, taught, terms = self.distillation(seen)
            elif latents is not None:
                y = self.model.decode(latents)  # type: ignore[operator]
            else:
                y = self.forward(seen)
        loss, parts = self.loss(y, x, content, moving)
        if self.distillation is not None:
            return loss + taught, {**parts, **terms}
        return loss, parts

    def train_step(self, batch: Batch) -> None:
        """One step; its figures are reported at once, or with the next step where reports are late."""
        started = time.perf_counter()
        rate = self.settings.rate(self.step)
        if self.plateau is not None:
            rate = max(min(rate, self.settings.min_lr), rate * self.plateau.factor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self._accumulate(batch)
        self.masks.mask_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if self.settings.grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.settings.grad_clip, norm)
        values = torch.stack([loss, norm, *parts.values()])
        arrived = None
        if self.device.type == "cuda":
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        names = ("loss", "grad_norm", *(f"loss_{name}" for name in parts))
        report = _Report(self.step + 1, rate, batch.row_ids, names, values, arrived, started)
        if not self.late:
            report.read()
        self.optimizer.step()
        self.masks.mask_weights()
        self.step += 1
        self.average.update(self.step)
        if self.late:
            self.report()
            self.pending = report
        else:
            self.pending = report
            self.report()

    def report(self) -> None:
        """Tells the callbacks of the step that is not reported yet, if there is one."""
        if self.pending is None:
            return
        report, self.pending = self.pending, None
        figures = report.read()
        figures |= {"learning_rate": report.rate, "step_ms": (time.perf_counter() - report.started) * 1e3}
        self.callbacks.on_step(report.step, figures)
        if report.step % self.settings.log_interval == 0 or report.step == self.settings.total_steps:
            self.callbacks.log("info", f"step {report.step}: loss {figures['loss']:.5f}, lr {report.rate:.3g}")


def train(
    model: nn.Module,
    settings: TrainSettings,
    stream: BatchStream,
    pinned: PinnedImages,
    *,
    masks: Mapping[str, Tensor] | None = None,
    callbacks: TrainCallbacks | None = None,
    folder: Path | None = None,
    resume_from: Path | None = None,
    device: str = "cpu",
    clock: Callable[[], float] = time.monotonic,
    late_reports: bool | None = None,
    teacher: DCAE | None = None,
) -> TrainResult:
    """Trains `model` in place and returns the weights to keep.

    `masks` (parameter name -> bool, True = kept) hold throughout. `folder` receives checkpoints: at each `save_interval` epochs,
    at least once a minute, at a pause and at the end of a cancelled run; `resume_from` is one of them. `late_reports`: whether a
    step's figures are read after the next one was started (None: on CUDA). `teacher` is what distillation follows. Raises
    TrainingError where the loss is not finite (the newest checkpoint is then whole), ConfigError for settings that cannot be,
    CheckpointError for a checkpoint that cannot be read or written.
    """
    callbacks = callbacks or NullCallbacks()
    torch.manual_seed(settings.seed)
    run = _Run(model, settings, pinned, masks or {}, callbacks, folder, device, late_reports, teacher, stream)
    run.set_train_mode()
    if resume_from is not None:
        run.restore(resume_from)
    else:
        run.validate()
    status: Literal["done", "cancelled", "released"] = "done"
    saved_at = clock()
    batches = stream.iterate(run.step)
    try:
        while run.step < settings.total_steps and not run.stopped:
            began = clock()
            control: str = callbacks.poll()
            if control == "pause":
                run.checkpoint("pause")
                control = callbacks.wait_paused()
                if control == "release":
                    status = "released"
                    break
                began = saved_at = clock()
            if control == "cancel":
                run.checkpoint("cancel")
                status = "cancelled"
                break
            if control == "checkpoint":
                run.checkpoint("asked")
                saved_at = clock()
            batch = next(batches)
            with recomputed_stages(run.model, settings.recompute):
                run.train_step(batch)
            run.skipped |= stream.skipped
            epoch_ends = run.step % settings.steps_per_epoch == 0
            epoch = run.step // settings.steps_per_epoch
            spent = run.stop_rule.spend(clock() - began)
            run.stopped = spent
            if (epoch_ends and epoch % settings.eval_interval == 0) or run.step == settings.total_steps or spent:
                run.validate()
            due = epoch_ends and epoch % settings.save_interval == 0
            kept = epoch_ends and settings.keep_every > 0 and epoch % settings.keep_every == 0
            if due or kept or clock() - saved_at >= CHECKPOINT_SECONDS:
                run.checkpoint("every" if kept else "interval")
                saved_at = clock()
    finally:
        batches.close()  # type: ignore[attr-defined]
    weights = run.best if settings.keep == "best" and run.best else run.kept_weights()
    return TrainResult(
        status, run.step, weights, run.best_step or run.step, run.best_value, tuple(sorted(run.skipped)), run.stopped
    )
