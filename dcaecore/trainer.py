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
- Several processes (`world`) train on shares of the same batches; rank 0 alone validates, writes and is steered.
- Callbacks steer: `poll` is asked before each step, so pause, cancel and checkpoint are answered within one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcaecore.batches import Batch, BatchStream
from dcaecore.best import BestWeights
from dcaecore.callbacks import NullCallbacks, TrainCallbacks
from dcaecore.checkpoints import (
    TrainState,
    clean_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from dcaecore.compiling import check_compiler
from dcaecore.distillation import Distillation, DistillWeights
from dcaecore.errors import CheckpointError, ConfigError
from dcaecore.freezing import check_parts, freeze, held_prefixes
from dcaecore.image_losses import ImageLosses
from dcaecore.latents import LatentCache, pays
from dcaecore.layer_stats import LayerWatch
from dcaecore.losses import ReconstructionLoss
from dcaecore.metrics import evaluate_images
from dcaecore.model import DCAE
from dcaecore.optim import MIXING, MovingAverage, WeightMasks, make_optimizer
from dcaecore.pinned import PinnedImages
from dcaecore.plateau import Plateau
from dcaecore.recompute import recomputed_stages
from dcaecore.step import StepLoss, StepReport, gathered
from dcaecore.stopping import StopRule
from dcaecore.train_settings import TrainSettings
from dcaecore.world import ALONE, World

CHECKPOINT_SECONDS = 60.0
CONTROLS = ("run", "pause", "cancel", "checkpoint", "release")


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


class _Run:
    """A training in progress: what `train` holds together."""

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        stream: BatchStream,
        pinned: PinnedImages,
        *,
        masks: Mapping[str, Tensor],
        callbacks: TrainCallbacks,
        folder: Path | None,
        device: str,
        late_reports: bool | None,
        teacher: DCAE | None,
        world: World,
    ) -> None:
        self.settings, self.stream, self.pinned, self.folder, self.world = settings, stream, pinned, folder, world
        self.callbacks = callbacks
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
        self.autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
        self.distillation = self._distillation(teacher)
        self._check_parts()
        self.latents = self._latent_cache(stream)
        if settings.compile_model:
            check_compiler(str(self.device))
        step_loss = StepLoss(
            self.model,
            self.loss,
            distillation=self.distillation,
            autocast=self.autocast,
            compiled=settings.compile_model,
            world=world,
        )
        self.step_loss = world.averaging(step_loss)
        self.watch = LayerWatch(self.model) if settings.layer_stats and isinstance(self.model, DCAE) else None
        self.average = MovingAverage(self.model, settings.ema_decay if world.is_main else 0.0)
        self.best = BestWeights(settings.best_metric, pinned, callbacks.log)
        self.stop_rule, self.stopped = StopRule(settings, self.best.sign), ""
        self.plateau: Plateau | None = None
        if settings.lr_schedule_name == "plateau":
            self.plateau = Plateau(
                gamma=settings.lr_gamma, patience=settings.lr_patience, min_gain=settings.min_gain, sign=self.best.sign
            )
        self.step = 0
        self.skipped: set[str] = set()
        self.pending: StepReport | None = None
        self.images = ImageLosses(len(stream.cache.frames))

    def _distillation(self, teacher: DCAE | None) -> Distillation | None:
        s = self.settings
        wanted = DistillWeights(s.distill_output_weight, s.distill_latent_weight, s.distill_features_weight)
        if not wanted.any:
            return None
        if teacher is None or not isinstance(self.model, DCAE):
            raise ConfigError("Distillation needs a teacher.", code="no_teacher", next="Name one, or set its weights to 0.")
        teacher = teacher.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Distillation(teacher, self.model, wanted, mean=self.world.mean)

    def _check_parts(self) -> None:
        """The batch must divide into its parts, and each part over the processes, whose stream must know of both."""
        size, parts, world = self.stream.batch_size, self.settings.accumulation_steps, self.world.size
        if size % parts:
            raise ConfigError(
                f"A batch of {size} does not divide into {parts} parts.",
                given=parts,
                legal=[n for n in range(1, size + 1) if size % n == 0],
            )
        assert self.stream.world_size == world and (world == 1 or self.stream.parts == parts)
        if world > 1 and self.settings.batchnorm == "train":
            if any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules()):
                raise ConfigError(
                    "BatchNorm statistics would differ between the processes.", given="train", legal="frozen",
                    next="Train in one process, or keep the parent's statistics (batchnorm frozen).",
                )  # fmt: skip

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
        """Scores the weights that would be kept; remembers them where they are the best so far. Rank 0 does, and tells the others."""
        self.report()
        self.masks.mask_weights()
        if self.world.is_main:
            self._validate()
        self.stopped = self.world.share(self.stopped)
        if self.plateau is not None:
            self.plateau.restore(self.world.share(self.plateau.facts()))

    def _validate(self) -> None:
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
        value = scores.means.get(self.best.metric)
        if self.step > 0:
            self.best.observe(self.step, value, self.kept_weights)
            self.stopped = self.stop_rule.observe(value) or self.stopped
            if self.plateau is not None:
                self.plateau.observe(value)
        self.callbacks.on_eval(self.step, scores)
        if self.watch is not None:
            self.callbacks.on_layers(self.step, {**layers, **outputs})
        self.callbacks.on_image_losses(self.step, self.images)

    def checkpoint(self, why: str) -> None:
        """Writes all that the rest of the training depends on; nothing without a folder."""
        self.report()
        self.masks.mask_weights()
        self.skipped = self.world.union(self.skipped)
        if self.folder is None or not self.world.is_main:
            return
        facts = {
            **self.best.facts(),
            "skipped": sorted(self.skipped),
            "threads": torch.get_num_threads(),
            "random_state": torch.get_rng_state().numpy().tobytes().hex(),
            "next_batch": self.step,
            "stop_rule": self.stop_rule.facts(),
            "stopped": self.stopped,
            "plateau": None if self.plateau is None else self.plateau.facts(),
        }
        moments = optimizer_tensors(self.optimizer, self.names)
        images = {name: torch.from_numpy(values.copy()) for name, values in self.images.arrays.items()}
        state = TrainState(self.step, self.model.state_dict(), self.average.state, self.best.state, moments, images, facts)
        path = save_checkpoint(self.folder, state)
        self.callbacks.on_checkpoint(path, self.step, why)
        every = self.settings.keep_every * self.settings.steps_per_epoch
        clean_checkpoints(self.folder, every=every, spare=self.callbacks.spared())

    def restore(self, path: Path | None) -> None:
        """Goes back to a checkpoint, which rank 0 reads. Raises CheckpointError where it is damaged, or of another model."""
        read = self.world.together(lambda: load_checkpoint(path) if path is not None else TrainState(0, {}))
        state = TrainState(
            step=self.world.decide(read.step), model=self.world.share_tensors(read.model), ema=read.ema, best=read.best,
            optimizer=self.world.share_tensors(read.optimizer), images=read.images, facts=self.world.share(read.facts),
        )  # fmt: skip
        self.world.together(lambda: self._take(state, path))

    def _take(self, state: TrainState, path: Path | None) -> None:
        try:
            self.model.load_state_dict(state.model)
            self.average.restore(state.ema)
        except (RuntimeError, KeyError) as error:
            name = "This" if path is None else path.name
            raise CheckpointError(
                f"{name} is the checkpoint of another training: {error}", code="other_model", given=str(path)
            ) from error
        self.best.restore(state.best, state.facts)
        restore_optimizer(self.optimizer, self.names, state.optimizer)
        self.masks.mask_weights()
        self.masks.mask_state(self.average.state)
        self.masks.mask_state(self.best.state)
        self.masks.mask_moments(self.optimizer)
        self.step = state.step
        self.skipped = set(state.facts["skipped"])
        self.images.restore({name: values.numpy() for name, values in state.images.items()})
        if state.facts.get("stop_rule"):
            self.stop_rule.restore(state.facts["stop_rule"])
            self.stopped = state.facts["stopped"]
        if self.plateau is not None and state.facts.get("plateau"):
            self.plateau.restore(state.facts["plateau"])
        if "random_state" in state.facts:
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state.facts["random_state"]), dtype=torch.uint8))
        if state.facts["threads"] != torch.get_num_threads():
            self.callbacks.log("warning", "Resumed with another thread count: the last bits of the weights will differ.")

    def _accumulate(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Gathers the gradients of a batch, in so many parts of it as asked; returns loss, its parts and each image's, detached."""
        x = self._on_device(batch.images_BCHW)
        seen = x if batch.seen_BCHW is None else self._on_device(batch.seen_BCHW)
        moving = batch.foreground_B1HW.to(self.device, non_blocking=True)
        latents = None if self.latents is None else self._on_device(self.latents.of(self.step, batch))
        count = self.settings.accumulation_steps
        total, sums, each = torch.zeros((), device=self.device), dict[str, Tensor](), list[Tensor]()
        size = len(x) // count
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            ranks = self.step_loss if isinstance(self.step_loss, DistributedDataParallel) else None
            with ranks.no_sync() if ranks is not None and first + size < len(x) else nullcontext():
                loss, parts, losses = self.step_loss(
                    x[rows], seen[rows], moving[rows], None if latents is None else latents[rows]
                )
                (loss / count).backward()
            total += loss.detach() / count
            each.append(losses)
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.detach() / count
        return total, sums, torch.cat(each)

    def train_step(self, batch: Batch) -> None:
        """One step; its figures are reported at once, or with the next step where reports are late."""
        started = time.perf_counter()
        rate = self.settings.rate(self.step)
        if self.plateau is not None:
            rate = max(min(rate, self.settings.min_lr), rate * self.plateau.factor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts, each = self._accumulate(batch)
        self.masks.mask_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if self.settings.grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.settings.grad_clip, norm)
        figures, images = gathered(self.world, loss, parts, each, batch.rows)
        values = torch.cat([figures[:1], norm[None].to(figures.dtype), figures[1:], images])
        arrived = None
        if self.device.type == "cuda":
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        report = StepReport(
            self.step + 1, rate, ("loss", "grad_norm", *(f"loss_{name}" for name in parts)), values, arrived, started,
            batch.rows if self.world.size == 1 else None, self.stream.cache.frames.row_ids,
        )  # fmt: skip
        if not self.late:
            report.read()
        self.optimizer.step()
        if self.settings.optimizer_name in MIXING:
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
        self.images.observe(report.step, *report.images())
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
    world: World = ALONE,
) -> TrainResult:
    """Trains `model` in place and returns the weights to keep.

    `masks` (parameter name -> bool, True = kept) hold throughout. `folder` receives checkpoints: at each `save_interval` epochs,
    at least once a minute, at a pause, at the end and where it is cancelled; `resume_from` is one of them. `late_reports`: whether a
    step's figures are read after the next one was started (None: on CUDA). `teacher` is what distillation follows. In a `world` of
    several processes each calls this with its own stream; `callbacks`, `folder` and `resume_from` count on rank 0 alone, and its
    result is the whole one. Raises TrainingError where the loss is not finite (the newest checkpoint is then whole), ConfigError for
    settings that cannot be, CheckpointError for a checkpoint that cannot be read or written.
    """
    callbacks = callbacks if callbacks is not None and world.is_main else NullCallbacks()
    torch.manual_seed(settings.seed)
    run = _Run(
        model, settings, stream, pinned, masks=masks or {}, callbacks=callbacks, folder=folder, device=device,
        late_reports=late_reports, teacher=teacher, world=world,
    )  # fmt: skip
    run.set_train_mode()
    if world.decide(int(resume_from is not None)):
        run.restore(resume_from)
    else:
        run.validate()
    status = _loop(run, clock)
    run.skipped = world.union(run.skipped)
    weights = run.best.state if settings.keep == "best" and run.best.state else run.kept_weights()
    callbacks.on_image_losses(run.step, run.images)
    return TrainResult(
        status, run.step, weights, run.best.step or run.step, run.best.value, tuple(sorted(run.skipped)), run.stopped
    )


def _loop(run: _Run, clock: Callable[[], float]) -> Literal["done", "cancelled", "released"]:
    """Steps until the end, a cancel, or a pause that must leave the device. What depends on the clock or on a request is rank 0's word."""
    settings, world, callbacks = run.settings, run.world, run.callbacks
    saved_at = clock()
    batches = run.stream.iterate(run.step)
    try:
        while run.step < settings.total_steps and not run.stopped:
            began = clock()
            control: str = CONTROLS[world.decide(CONTROLS.index(callbacks.poll()))]
            if control == "pause":
                run.checkpoint("pause")
                control = CONTROLS[world.decide(CONTROLS.index(callbacks.wait_paused()))]
                if control == "release":
                    return "released"
                began = saved_at = clock()
            if control == "cancel":
                run.checkpoint("cancel")
                return "cancelled"
            if control == "checkpoint":
                run.checkpoint("asked")
                saved_at = clock()
            batch = world.together(lambda: next(batches))
            with recomputed_stages(run.model, settings.recompute):
                run.train_step(batch)
            run.skipped |= run.stream.skipped
            epoch_ends = run.step % settings.steps_per_epoch == 0
            epoch = run.step // settings.steps_per_epoch
            ended = run.stop_rule.spend(clock() - began)
            spent = bool(world.decide(bool(ended)))
            run.stopped = ended if spent else ""
            if (epoch_ends and epoch % settings.eval_interval == 0) or run.step == settings.total_steps or spent:
                run.validate()
            due = epoch_ends and epoch % settings.save_interval == 0
            kept = epoch_ends and settings.keep_every > 0 and epoch % settings.keep_every == 0
            due = bool(world.decide(due or clock() - saved_at >= CHECKPOINT_SECONDS))
            ends = run.step == settings.total_steps or bool(run.stopped)
            if due or kept or ends:
                run.checkpoint("every" if kept else "interval" if due else "end")
                saved_at = clock()
    finally:
        batches.close()  # type: ignore[attr-defined]
    return "done"
