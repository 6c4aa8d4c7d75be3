"""Retrain: a parent trained further on images; masks and narrower widths are kept."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

import store.jobs as jobs
from core.errors import CoreError
from core.names import model_name
from core.operations.context import Cancelled, Context, Outcome, Paused
from core.operations.images import open_parts
from core.operations.models import Loaded, load, new_model
from core.specs import RetrainSpec
from dcaecore import (
    BatchStream,
    ImageScores,
    PinnedImages,
    TrainSettings,
    latest_checkpoint,
    pin,
    schedule_warning,
    train,
)
from store import baseline_of, checkpoints, get_model

SETTINGS = {field.name for field in dataclasses.fields(TrainSettings)}


def train_settings(spec: RetrainSpec) -> TrainSettings:
    """The spec's training part."""
    values = {name: value for name, value in spec.model_dump().items() if name in SETTINGS}
    return TrainSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class JobCallbacks:
    """Reports a training to the store, and asks the store what to do."""

    def __init__(self, context: Context, settings: TrainSettings, pinned: PinnedImages, num_images: int) -> None:
        self.context, self.settings, self.pinned, self.num_images = context, settings, pinned, num_images
        self.started, self.first_step = time.monotonic(), 0
        self.figures: dict[str, float] = {}

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        return self.context.poll()

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        since = time.monotonic()
        self.context.log("info", "Paused.")
        answer = self.context.wait_paused()
        self.started += time.monotonic() - since
        return answer

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self.context.metrics.log(step, metrics)
        total = self.settings.total_steps
        pace = (time.monotonic() - self.started) / max(1, step - self.first_step)
        self.context.progress(step / total, f"step {step} of {total}, loss {metrics['loss']:.4f}", pace * (total - step))

    def on_eval(self, step: int, scores: ImageScores) -> None:
        self.figures = scores.means
        if step == 0:
            self.started = time.monotonic()  # the time left is told from steps, not from opening images
        self.context.metrics.log(step, {f"val_{name}": value for name, value in scores.means.items()})
        figures = ", ".join(f"{name} {value:.4g}" for name, value in scores.means.items())
        self.context.log("info", f"validation at step {step}: {figures}")
        folder = self.context.folder / "images"
        folder.mkdir(exist_ok=True)
        for index in range(min(self.num_images, len(self.pinned))):
            original = folder / f"original_{index:02d}.png"
            if not original.exists():
                original.write_bytes(png(self.pinned.images[index]))
            (folder / f"step_{step:08d}_{index:02d}.png").write_bytes(png(scores.reconstructions[index]))

    def on_checkpoint(self, path: Path, step: int, why: str) -> None:
        checkpoints.record(self.context.store, self.context.job.id, step, path, why, self.figures)
        if why == "asked":
            jobs.acknowledge(self.context.store, self.context.job, "checkpoint")
        self.context.log("info", f"Checkpoint at step {step} ({why}).")

    def log(self, level: str, message: str) -> None:
        self.context.log(level, message)


def png(image: np.ndarray) -> bytes:
    """uint8 `(H, W, 3)` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _teacher(spec: RetrainSpec, context: Context, parent: Loaded) -> Loaded | None:
    """The model that distillation follows."""
    if not spec.teacher:
        return None
    row = baseline_of(context.store, parent.row.id) if spec.teacher == "baseline" else get_model(context.store, spec.teacher)
    context.log("info", f"Learning from {row.name} ({row.id}).")
    return load(context.store, row.id)


def run(spec: RetrainSpec, context: Context) -> Outcome:
    """Trains the parent; goes on from the job's newest checkpoint where there is one."""
    if context.job.parent_model_id is None:
        raise CoreError("Retraining needs a parent model.", code="no_parent")
    parent = load(context.store, context.job.parent_model_id)
    parent.model.config.check_image_size(spec.image_size, spec.image_size)
    settings = train_settings(spec)
    warning = schedule_warning(
        warmup_steps=spec.warmup_epochs * spec.steps_per_epoch,
        total_steps=spec.total_steps,
        init_lr=spec.init_lr,
        warmup_lr=spec.warmup_lr,
    )
    if warning:
        context.log("warning", warning)
    teacher = _teacher(spec, context, parent)
    trained, validation = open_parts(spec.data, spec.image_size, context, "train", "validation")
    pinned = pin(validation.cache, validation.rows, spec.val_steps, skip_broken=spec.data.skip_broken)
    context.log("info", f"Validating on {len(pinned)} images.")
    if pinned.foreground_reason:
        context.log("info", f"No foreground figures: {pinned.foreground_reason}.")
    stream = BatchStream(
        trained.cache,
        trained.rows,
        batch_size=spec.batch_size,
        seed=spec.seed,
        num_workers=spec.num_workers,
        skip_broken=spec.data.skip_broken,
        with_foreground=spec.foreground_weight != 1.0,
    )
    if stream.with_foreground and trained.frames.episodes is None:
        context.log("warning", "The images have no episodes, so nothing tells what moves: foreground_weight has no effect.")
    callbacks = JobCallbacks(context, settings, pinned, spec.num_save_images)
    folder = context.folder / "checkpoints"
    resume = latest_checkpoint(folder)
    if resume is not None:
        callbacks.first_step = int(resume.name.removeprefix("step_"))
        context.resume_metrics(callbacks.first_step)
        context.log("info", f"Going on from step {callbacks.first_step}.")
    started = time.monotonic()
    context.progress(callbacks.first_step / spec.total_steps, "first validation", force=True)
    result = train(
        parent.model,
        settings,
        stream,
        pinned,
        masks=parent.masks,
        callbacks=callbacks,
        folder=folder,
        resume_from=resume,
        device=context.device,
        teacher=None if teacher is None else teacher.model,
    )
    if result.status == "released":
        raise Paused
    if result.status == "cancelled":
        raise Cancelled
    skipped = tuple(sorted({*result.skipped_rows, *pinned.skipped}))
    if skipped:
        context.log("warning", f"{len(skipped)} broken images were skipped: {', '.join(skipped[:5])}")
    made = new_model(
        context.store,
        name=context.job.name if context.job.name != "retrain" else model_name(parent.row.family, "retrained"),
        kind="retrained",
        spec=spec,
        state=result.state,
        config=parent.model.config,
        layout=parent.model.layout,
        masks=parent.masks,
        parents=[("parent", parent.row.id), *([] if teacher is None else [("teacher", teacher.row.id)])],
        dataset={**trained.frames.identity(trained.rows), "image_size": spec.image_size, "seed": spec.seed},
    )
    steps = result.steps - callbacks.first_step
    return Outcome(
        model=made,
        result={
            "steps": result.steps,
            "best_step": result.best_step,
            "best_value": result.best_value,
            "validation": callbacks.figures,
            "last_learning_rate": settings.rate(max(0, result.steps - 1)),
            "skipped_rows": list(skipped),
            "step_s": (time.monotonic() - started) / max(1, steps),
            "device": context.device,
            "threads": torch.get_num_threads(),
            "warning": warning,
        },
    )
