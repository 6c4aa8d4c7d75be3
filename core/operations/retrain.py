"""Retrain: a parent trained further on images; masks and narrower widths are kept."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import store.jobs as jobs
from core.errors import CoreError
from core.image_losses import write_losses
from core.names import model_name
from core.operations.context import Cancelled, Context, Outcome, Paused
from core.operations.goal import goal_value
from core.operations.memory import memory_told
from core.operations.models import Loaded, load, new_model
from core.operations.ranks import loss_table, rank_device, tell
from core.operations.training_images import shared_images, slice_figures
from core.operations.training_settings import train_settings
from core.specs import RetrainSpec
from dcaecore import (
    ImageLosses,
    ImageScores,
    PinnedImages,
    TrainSettings,
    World,
    joined,
    latest_checkpoint,
    schedule_warning,
    train,
)
from store import ModelRow, Store, baseline_of, checkpoints, get_model

DATASET_NAME = "dataset.json"


class JobCallbacks:
    """Reports a training to the store, and asks the store what to do."""

    def __init__(
        self,
        context: Context,
        settings: TrainSettings,
        pinned: PinnedImages,
        num_images: int,
        row_ids: Sequence[str] = (),
        slices: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.context, self.settings, self.pinned, self.num_images = context, settings, pinned, num_images
        self.row_ids = row_ids
        """Names of all rows of the source; without them no losses of single images are written."""
        self.slices = slices or {}
        """Places of the pinned images of each slice, by its name."""
        self.started, self.first_step = time.monotonic(), 0
        self.polls = 0
        """One before each step of this attempt, so they count the steps begun: reports may come a step late."""
        self.told: tuple[float, str] | None = None
        """Of the newest step: the share done, and in words."""
        self.figures: dict[str, float] = {}
        self.slice_figures: dict[str, float] = {}

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        steps_done = self.first_step + self.polls
        self.polls += 1
        return self.context.poll(steps_done)

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        since = time.monotonic()
        self.context.log("info", "Paused.")
        if self.told is not None:
            self.context.progress(*self.told, force=True)  # else the last report, a few steps old, stands for hours
        answer = self.context.wait_paused()
        self.started += time.monotonic() - since
        return answer

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self.context.metrics.log(step, {**metrics, **self.context.system.due()})
        total = self.settings.total_steps
        pace = (time.monotonic() - self.started) / max(1, step - self.first_step)
        self.told = (step / total, f"step {step} of {total}, loss {metrics['loss']:.4f}")
        self.context.progress(*self.told, pace * (total - step))

    def on_eval(self, step: int, scores: ImageScores) -> None:
        self.figures = scores.means
        if step == 0:
            self.started = time.monotonic()  # the time left is told from steps, not from opening images
        sliced = slice_figures(scores.per_image, self.slices)
        self.slice_figures = sliced
        self.context.metrics.log(step, {f"val_{name}": value for name, value in {**scores.means, **sliced}.items()})
        figures = ", ".join(f"{name} {value:.4g}" for name, value in scores.means.items())
        self.context.log("info", f"validation at step {step}: {figures}")
        folder = self.context.folder / "images"
        folder.mkdir(exist_ok=True)
        for index in range(min(self.num_images, len(self.pinned))):
            original = folder / f"original_{index:02d}.png"
            if not original.exists():
                original.write_bytes(png(self.pinned.images[index]))
            (folder / f"step_{step:08d}_{index:02d}.png").write_bytes(png(scores.reconstructions[index]))

    def on_layers(self, step: int, figures: dict[str, float]) -> None:
        self.context.metrics.log(step, figures)

    def on_image_losses(self, step: int, losses: ImageLosses) -> None:
        if step > 0 and self.row_ids:
            write_losses(self.context.folder, self.row_ids, losses.arrays)

    def on_checkpoint(self, path: Path, step: int, why: str) -> None:
        checkpoints.record(self.context.store, self.context.job.id, step, path, why, self.figures)
        if why == "asked":
            jobs.acknowledge(self.context.store, self.context.job, "checkpoint")
        for row in checkpoints.list_checkpoints(self.context.store, self.context.job):
            if not row.folder.is_dir():
                checkpoints.forget(self.context.store, row.id)  # cleaned away
        self.context.log("info", f"Checkpoint at step {step} ({why}).")

    def spared(self) -> set[str]:
        rows = checkpoints.list_checkpoints(self.context.store, self.context.job)
        return {row.folder.name for row in rows if row.why in checkpoints.KEPT}

    def log(self, level: str, message: str) -> None:
        self.context.log(level, message)


def png(image: np.ndarray) -> bytes:
    """uint8 `(H, W, 3)` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def teacher_row(spec: RetrainSpec, store: Store, parent_id: str) -> ModelRow | None:
    """The model that distillation follows, or None."""
    if not spec.teacher:
        return None
    return baseline_of(store, parent_id) if spec.teacher == "baseline" else get_model(store, spec.teacher)


def _teacher(spec: RetrainSpec, context: Context, parent: Loaded) -> Loaded | None:
    row = teacher_row(spec, context.store, parent.row.id)
    if row is None:
        return None
    context.log("info", f"Learning from {row.name} ({row.id}).")
    return load(context.store, row.id)


def _same_images(context: Context, dataset: dict[str, Any], resumed: bool) -> None:
    """Writes down what the images are; raises CoreError where a resumed training finds others than it began with."""
    path = context.folder / DATASET_NAME
    if not resumed or not path.exists():
        path.write_text(json.dumps(dataset, sort_keys=True))
        return
    began = json.loads(path.read_text())
    changed = sorted(key for key in began.keys() | dataset.keys() if began.get(key) != dataset.get(key))
    if changed:
        raise CoreError(
            f"The training images are not those that this training began with: {', '.join(changed)} changed.",
            code="data_changed",
            given={key: dataset.get(key) for key in changed},
            legal={key: began.get(key) for key in changed},
            next="Put the old images back, or make a model of the last checkpoint and train that on the new ones.",
        )


def run(spec: RetrainSpec, context: Context) -> Outcome:
    """Trains the parent; goes on from the job's newest checkpoint where there is one."""
    context.counts_steps = True
    with joined(rank_device(context.device)) as world:
        return _train(spec, context, world)


def _train(spec: RetrainSpec, context: Context, world: World) -> Outcome:
    if context.job.parent_model_id is None:
        raise CoreError("Retraining needs a parent model.", code="no_parent")
    if spec.processes != world.size:
        raise CoreError(
            f"{spec.processes} processes are asked for, and there are {world.size}.", code="devices", given=spec.processes,
            legal=world.size,
        )  # fmt: skip
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
    tell(world, spec, context.store, parent.row, None if teacher is None else teacher.row)
    losses = loss_table(spec, context.store)
    images = shared_images(spec, context, world, losses)
    trained = images.part
    settings = dataclasses.replace(settings, stop_value=goal_value(spec, context, images.pinned))
    dataset = {**trained.frames.identity(trained.rows), "image_size": spec.image_size, "seed": spec.seed}
    if spec.resize_method != "bicubic":
        dataset["resize_method"] = spec.resize_method
    callbacks = JobCallbacks(context, settings, images.pinned, spec.num_save_images, trained.frames.row_ids, images.slices)
    folder = context.folder / "checkpoints"
    resume = latest_checkpoint(folder)
    if resume is not None:
        callbacks.first_step = int(resume.name.removeprefix("step_"))
        context.resume_metrics(callbacks.first_step)
        context.log("info", f"Going on from step {callbacks.first_step}.")
    _same_images(context, dataset, resumed=resume is not None)
    started = time.monotonic()
    context.progress(callbacks.first_step / spec.total_steps, "first validation", force=True)
    with memory_told(parent.model, spec, context.device):
        result = train(
            parent.model,
            settings,
            images.stream,
            images.pinned,
            masks=parent.masks,
            callbacks=callbacks,
            folder=folder,
            resume_from=resume,
            device=context.device,
            teacher=None if teacher is None else teacher.model,
            world=world,
        )
    if result.status == "released":
        raise Paused
    if result.status == "cancelled":
        raise Cancelled
    skipped = tuple(sorted({*result.skipped_rows, *images.pinned.skipped}))
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
        dataset=dataset,
    )
    steps = result.steps - callbacks.first_step
    if result.stopped:
        context.log("info", f"Ended at step {result.steps} of {spec.total_steps}: {result.stopped}.")
    return Outcome(
        model=made,
        result={
            "steps": result.steps,
            "stopped": result.stopped,
            "best_step": result.best_step,
            "best_value": result.best_value,
            "validation": callbacks.figures,
            "slices": callbacks.slice_figures,
            "last_learning_rate": settings.rate(max(0, result.steps - 1)),
            "skipped_rows": list(skipped),
            "step_s": (time.monotonic() - started) / max(1, steps),
            "device": context.device,
            "threads": torch.get_num_threads(),
            "processes": world.size,
            "warning": warning,
            # What is named so is kept for as long as this job is.
            **({"loss_table_digest": spec.loss_table} if spec.loss_table else {}),
        },
    )
