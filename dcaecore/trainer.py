"""The training loop: one model, one stream of batches, pinned validation images.

Notable choices:
- A step's batch is a function of (seed, step), and a checkpoint holds model, EMA, best weights and optimizer, so a resumed run
  reaches the same bits as one that was never stopped (same device, same thread count).
- Pruned weights stay pruned: masks multiply the weights in place after each optimizer step, and the optimizer's moments are
  masked too. A gradient hook alone refilled 1,917,485 of 1,917,536 zeros: weight decay and momentum move weights without gradient.
- The optimizer is built here, after any pruning, from the parameters that the model has now.
- Callbacks steer: `poll` is asked before each step, so pause, cancel and checkpoint are answered within one step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dcaecore.batches import BatchStream
from dcaecore.checkpoints import (
    TrainState,
    clean_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from dcaecore.errors import ConfigError, TrainingError
from dcaecore.losses import ReconstructionLoss
from dcaecore.metrics import ImageScores, evaluate_images
from dcaecore.pinned import PinnedImages
from dcaecore.schedules import learning_rate

CHECKPOINT_SECONDS = 60.0
HIGHER_IS_BETTER = {
    "psnr_db": True,
    "foreground_psnr_db": True,
    "ssim": True,
    "accuracy": True,
    "loss": False,
    "l1": False,
}


@dataclass(frozen=True)
class TrainSettings:
    """What a training does; the fields mean what their namesakes of the retrain form mean."""

    n_epochs: int = 1
    steps_per_epoch: int = 100
    optimizer_name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_norms_and_biases: bool = False
    grad_clip: float = 1.0
    ema_decay: float = 0.0
    init_lr: float = 1e-4
    lr_schedule_name: str = "cosine"
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    lr_gamma: float = 0.1
    lr_step_epochs: int = 1
    reconstruction_loss: str = "l1"
    foreground_weight: float = 1.0
    perceptual_weight: float = 0.0
    frozen_part: str = "none"
    batchnorm: str = "frozen"
    dtype: str = "float32"
    seed: int = 0
    eval_interval: int = 1
    best_metric: str = "psnr_db"
    keep: str = "best"
    save_interval: int = 5
    log_interval: int = 100

    @property
    def total_steps(self) -> int:
        return self.n_epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        return learning_rate(
            step,
            name=self.lr_schedule_name,
            init_lr=self.init_lr,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_epochs * self.steps_per_epoch,
            warmup_lr=self.warmup_lr,
            min_lr=self.min_lr,
            gamma=self.lr_gamma,
            step_size=self.lr_step_epochs * self.steps_per_epoch,
        )


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

    def on_checkpoint(self, path: Path, step: int, why: str) -> None:
        """After a checkpoint is durable."""

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

    def on_checkpoint(self, path: Path, step: int, why: str) -> None: ...

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


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_norms_and_biases: bool) -> list[dict[str, object]]:
    """Trainable parameters with and without weight decay: vectors (norms, biases) are spared unless asked for."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 or decay_norms_and_biases]
    spared = [p for p in trained if p.ndim <= 1 and not decay_norms_and_biases]
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": weight_decay}]
    return [*groups, {"params": spared, "weight_decay": 0.0}] if spared else groups


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over the model's trainable parameters."""
    groups = parameter_groups(model, weight_decay=settings.weight_decay, decay_norms_and_biases=settings.decay_norms_and_biases)
    if settings.optimizer_name == "sgd":
        return torch.optim.SGD(groups, lr=settings.init_lr, momentum=settings.momentum)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    if settings.optimizer_name not in kinds:
        raise ConfigError("There is no such optimizer.", given=settings.optimizer_name, legal=[*kinds, "sgd"])
    return kinds[settings.optimizer_name](groups, lr=settings.init_lr, betas=settings.betas, eps=settings.eps, fused=True)


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
    ) -> None:
        self.settings, self.pinned, self.callbacks, self.folder, self.device = (
            settings,
            pinned,
            callbacks,
            folder,
            device,
        )
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.frozen_part != "none":
            getattr(self.model, settings.frozen_part).requires_grad_(False)
        self.parameters = dict(self.model.named_parameters())
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.masks = {name: mask.to(device) for name, mask in masks.items()}
        self.optimizer = make_optimizer(self.model, settings)
        self.loss = ReconstructionLoss(
            settings.reconstruction_loss,
            foreground_weight=settings.foreground_weight,
            perceptual_weight=settings.perceptual_weight,
        ).to(device)
        self.autocast = torch.bfloat16 if settings.dtype == "bfloat16" else None
        self.ema: dict[str, Tensor] = {}
        if settings.ema_decay > 0:
            self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.best: dict[str, Tensor] = {}
        self.best_value: float | None = None
        self.best_step = 0
        self.step = 0
        self.skipped: set[str] = set()
        self.apply_masks()

    def set_train_mode(self) -> None:
        self.model.train()
        if self.settings.batchnorm == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    @torch.no_grad()
    def apply_masks(self) -> None:
        for name, mask in self.masks.items():
            parameter = self.parameters[name]
            parameter.mul_(mask)
            for moment in self.optimizer.state.get(parameter, {}).values():
                if moment.shape == mask.shape:
                    moment.mul_(mask)

    @torch.no_grad()
    def update_ema(self) -> None:
        # A warm-up of the average itself, so that it does not remember the first weights for 1 / (1 - decay) steps.
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)

    def kept_weights(self) -> dict[str, Tensor]:
        """What would be kept if the run ended now: the EMA where it is on."""
        source = self.ema or self.model.state_dict()
        return {name: value.detach().cpu().clone().contiguous() for name, value in source.items()}

    def validate(self) -> None:
        live = None
        if self.ema:
            live = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.model.load_state_dict(self.ema)
        self.model.eval()
        scores = evaluate_images(
            self.model, self.pinned, device=self.device, autocast=self.autocast, loss=self.loss, batch_size=8
        )
        if live is not None:
            self.model.load_state_dict(live)
        self.set_train_mode()
        metric = self.settings.best_metric
        if metric not in scores.means:
            metric = "psnr_db"
        value = scores.means[metric]
        sign = 1 if HIGHER_IS_BETTER[metric] else -1
        if self.step > 0 and (self.best_value is None or sign * value > sign * self.best_value):
            self.best_value, self.best_step, self.best = value, self.step, self.kept_weights()
        self.callbacks.on_eval(self.step, scores)

    def checkpoint(self, why: str) -> None:
        if self.folder is None:
            return
        facts = {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "skipped": sorted(self.skipped),
            "threads": torch.get_num_threads(),
        }
        state = TrainState(
            self.step,
            self.model.state_dict(),
            self.ema,
            self.best,
            optimizer_tensors(self.optimizer, self.names),
            facts,
        )
        path = save_checkpoint(self.folder, state)
        clean_checkpoints(self.folder)
        self.callbacks.on_checkpoint(path, self.step, why)

    def restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        self.model.load_state_dict(state.model)
        if self.ema:
            self.ema = {name: value.to(self.device) for name, value in state.ema.items()}
        self.best = state.best
        restore_optimizer(self.optimizer, self.names, state.optimizer)
        self.step = state.step
        self.best_value, self.best_step = state.facts["best_value"], state.facts["best_step"]
        self.skipped = set(state.facts["skipped"])
        if state.facts["threads"] != torch.get_num_threads():
            self.callbacks.log("warning", "Resumed with another thread count: the last bits of the weights will differ.")

    def train_step(self, stream_batch) -> dict[str, float]:  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        rate = self.settings.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x = stream_batch.images_BCHW.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        content = stream_batch.content_B1HW.to(self.device, non_blocking=True)
        moving = stream_batch.foreground_B1HW.to(self.device, non_blocking=True)
        with torch.autocast(torch.device(self.device).type, dtype=self.autocast, enabled=self.autocast is not None):
            y = self.model(x)
        loss, parts = self.loss(y, x, content, moving)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.settings.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(trained, limit)
        values = torch.stack([loss.detach(), norm, *(part.detach() for part in parts.values())]).tolist()
        if not all(math.isfinite(v) for v in values[:2]):
            raise TrainingError(
                f"The loss or its gradient is not finite at step {self.step + 1} (images {', '.join(stream_batch.row_ids[:4])}).",
                code="not_finite",
                given=values[0],
                next="The last checkpoint is whole: lower init_lr, clip the gradient, or use float32.",
            )
        self.optimizer.step()
        self.step += 1
        if self.masks:
            self.apply_masks()
        if self.ema:
            self.update_ema()
        seconds = time.perf_counter() - started
        return {
            "loss": values[0],
            "grad_norm": values[1],
            **{f"loss_{name}": value for name, value in zip(parts, values[2:], strict=True)},
            "learning_rate": rate,
            "step_ms": seconds * 1e3,
        }


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
) -> TrainResult:
    """Trains `model` in place and returns the weights to keep.

    `masks` (parameter name -> bool, True = kept) hold throughout. `folder` receives checkpoints, at each `save_interval` epochs,
    at least once a minute, at a pause and at the end of a cancelled run; `resume_from` is one of them. Raises TrainingError where
    the loss is not finite; the newest checkpoint is then whole.
    """
    callbacks = callbacks or NullCallbacks()
    # Gradients of a well-trained model underflow: with denormal numbers a step took 2.4 s instead of 0.9 s (demo model, batch 8,
    # 2 cores). Threads inherit the mode, so it is set before the first operation.
    torch.set_flush_denormal(True)
    torch.manual_seed(settings.seed)
    run = _Run(model, settings, pinned, masks or {}, callbacks, folder, device)
    run.set_train_mode()
    if resume_from is not None:
        run.restore(resume_from)
    else:
        run.validate()
    status: Literal["done", "cancelled", "released"] = "done"
    saved_at = clock()
    batches = stream.iterate(run.step)
    try:
        while run.step < settings.total_steps:
            control: str = callbacks.poll()
            if control == "pause":
                run.checkpoint("pause")
                control = callbacks.wait_paused()
                if control == "release":
                    status = "released"
                    break
                saved_at = clock()
            if control == "cancel":
                run.checkpoint("cancel")
                status = "cancelled"
                break
            if control == "checkpoint":
                run.checkpoint("asked")
                saved_at = clock()
            metrics = run.train_step(next(batches))
            callbacks.on_step(run.step, metrics)
            if run.step % settings.log_interval == 0 or run.step == settings.total_steps:
                callbacks.log("info", f"step {run.step}: loss {metrics['loss']:.5f}, lr {metrics['learning_rate']:.3g}")
            epoch_ends = run.step % settings.steps_per_epoch == 0
            epoch = run.step // settings.steps_per_epoch
            if (epoch_ends and epoch % settings.eval_interval == 0) or run.step == settings.total_steps:
                run.validate()
            run.skipped |= stream.skipped
            due = epoch_ends and epoch % settings.save_interval == 0
            if due or clock() - saved_at >= CHECKPOINT_SECONDS:
                run.checkpoint("interval")
                saved_at = clock()
    finally:
        batches.close()  # type: ignore[attr-defined]
    kept = run.best if settings.keep == "best" and run.best else run.kept_weights()
    return TrainResult(status, run.step, kept, run.best_step or run.step, run.best_value, tuple(sorted(run.skipped)))
