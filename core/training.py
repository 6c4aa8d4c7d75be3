"""Retrainings that are steered, and what their checkpoints become. No torch.

A checkpoint is not a model yet: `branch` makes one of it, with the trained model as its parent, while the retraining stays as it
was. Whatever is done to models (evaluate, compare, promote, train further) can then be done to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import store.jobs as jobs
from core.augmentations import source_of
from core.checks import SpecLike, changed, checked
from core.curve_hints import Hint, curve_hints
from core.devices import default_device
from core.errors import CoreError
from core.machine import check_machine
from core.names import model_name
from core.resetting import chosen_tensors, layer_names, older, stored_shapes
from core.retrain_presets import phases, preset_values
from core.schedules import with_steps
from core.settings import Settings
from core.specs import BranchSpec, ResetSpec, RetrainSpec
from dcaecore.config import DCAEConfig, check_teacher
from dcaecore.data import check_location
from dcaecore.freezing import check_parts, part_names
from store import CheckpointRow, JobRow, ModelRow, Store, baseline_of, checkpoints, get_model, metrics

NUM_NEWEST = 2
REASONS = {
    "interval": "at its time",
    "every": "every so many epochs",
    "asked": "asked for",
    "pause": "at a pause",
    "end": "at the end",
    "cancel": "at a cancel",
    "branch": "a model was made of it",
}
LAYER_FIGURES = ("weight_rms", "gradient_rms", "activation_rms", "dead_ratio")
STANDING = ("paused", "failed", "cancelled", "done")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as a list shows it."""

    step: int
    why: str
    """Why it was written, in words."""
    kept: str
    """Why it is still there, in words."""
    bytes: int
    created: str
    figures: Mapping[str, float]
    """Of the last validation before it."""
    best_step: int | None
    """Step of the best weights until then, which it carries too; None where nothing was validated yet."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "figures": dict(self.figures)}


def cleaning_rule(spec: RetrainSpec) -> str:
    """Which checkpoints of a training stay, in one sentence."""
    every = {0: "", 1: ", those of every epoch"}.get(spec.keep_every, f", one in every {spec.keep_every} epochs")
    return (
        f"Kept: the {NUM_NEWEST} newest checkpoints, those asked for{every}, and those that a model was made of. The others go when "
        "the next one is whole. Each carries the best weights until then."
    )


def goal_row(spec: RetrainSpec, store: Store, model_id: str) -> ModelRow | None:
    """The model to be as good as, for a training of `model_id`; None where there is none. Raises CoreError, StoreError."""
    if not spec.good_as:
        return None
    if spec.good_as == "baseline":
        return baseline_of(store, model_id)
    if spec.good_as != "parent":
        return get_model(store, spec.good_as)
    row = get_model(store, model_id)
    if row.parent_id is None:
        raise CoreError(
            f"{row.name} is a baseline: it was made of no other model.", code="no_parent", given="parent", legal="a model's id",
            next="Name the model that this one shall become as good as.",
        )  # fmt: skip
    return get_model(store, row.parent_id)


class Training:
    """The part of `ModelManager` that steers retrainings."""

    store: Store
    settings: Settings
    _submit: Callable[..., JobRow]
    _ensure_worker: Callable[[str], None]
    _check_size: Callable[[Any, int], None]
    retrain_model: Callable[..., JobRow]
    held_part: Callable[..., str]

    def _retraining(self, ref: str) -> tuple[JobRow, RetrainSpec]:
        job = jobs.get_job(self.store, ref)
        if job.operation != "retrain":
            raise CoreError(f"{job.name} is no retraining.", code="operation", given=job.operation, legal="retrain")
        return job, RetrainSpec.model_validate(job.spec)

    def _check_retraining(self, parent: str | Mapping[str, str], spec: RetrainSpec, device: str | None = None) -> None:
        """What can be known before a retraining begins; raises ConfigError, CoreError, StoreError."""
        self._check_size(parent, spec.image_size)
        check_machine(spec, device or default_device(self.settings.device), self.settings.rendezvous)
        if spec.min_lr > spec.init_lr:
            raise CoreError(
                f"min_lr {spec.min_lr:g} is above init_lr {spec.init_lr:g}: the rate would rise to the end.", code="min_lr",
                given=spec.min_lr, legal=f"0 to {spec.init_lr:g}",
            )  # fmt: skip
        for data in spec.data_sets:
            check_location(source_of(data))
        if isinstance(parent, str):
            self._check_parts_and_goal(parent, spec)
        if spec.perceptual_weight > 0:
            from dcaecore.losses import lpips_status  # imports torch: only where it is asked for

            available, reason = lpips_status()
            if not available:
                raise CoreError(f"The perceptual loss is off: {reason}.", code="no_lpips", legal=0.0)

    def _check_parts_and_goal(self, model_id: str, spec: RetrainSpec) -> None:
        """What a retraining holds and aims at must be there; raises ConfigError, CoreError, StoreError."""
        config = DCAEConfig.from_json(get_model(self.store, model_id).config)
        check_parts(config, spec.frozen_stages)
        goal_row(spec, self.store, model_id)
        if spec.teacher not in ("", "baseline"):
            teacher = get_model(self.store, spec.teacher)
            check_teacher(DCAEConfig.from_json(teacher.config), config, features=spec.distill_features_weight > 0)

    def steps_done(self, ref: str) -> int:
        """Steps that a retraining has behind it, or would go on from."""
        job, _ = self._retraining(ref)
        if job.pid is not None:
            latest = metrics.latest(self.store, [job.id]).get(job.id)
            return 0 if latest is None else int(latest["step"])
        newest = checkpoints.latest(self.store, job)
        return 0 if newest is None else newest.step

    def run_more(self, ref: str, steps: int) -> JobRow:
        """Lets a retraining run so many more steps and then pause, whether it runs, waits or stands still now.

        Raises CoreError for fewer than 1 step, and for so many that it would not pause before its end.
        """
        job, spec = self._retraining(ref)
        done = self.steps_done(job.id)
        most = spec.total_steps - done - 1
        if job.state != "done" and not 1 <= steps <= most:
            raise CoreError(
                f"{done} of {spec.total_steps} steps are done: a pause after {steps} more cannot be.",
                code="steps", given=steps, legal=f"1 to {most}" if most >= 1 else None,
                next="Resume it without a number of steps, and it runs to its end.",
            )  # fmt: skip
        row = jobs.run_until(self.store, job, done + steps)
        if row.state == "queued":
            self._ensure_worker(row.device)
        return row

    def layer_figures(self, ref: str) -> list[dict[str, Any]]:
        """The newest figures of each part of the model in training, from the image to the latents and back; empty without any."""
        job, _ = self._retraining(ref)
        found: dict[str, dict[str, Any]] = {}
        for key, value in metrics.latest(self.store, [job.id]).get(job.id, {}).items():
            figure, _, part = key.partition(".")
            if figure in LAYER_FIGURES:
                found.setdefault(part, {"part": part})[figure] = value
        names = [] if not found or job.parent_model_id is None else part_names(self._config(job.parent_model_id))
        return [found[name] for name in names if name in found]

    def reset_layers(self, parent: str, spec: SpecLike = None, *, name: str | None = None) -> JobRow:
        """Submits the making of a model of which some parts, layers or units have new weights; raises CoreError for what it has not."""
        given = checked(ResetSpec, spec)
        if not given.layers:
            raise CoreError("Name at least one layer to reset.", code="layer", given=[], legal="such as decoder.conv_out")
        row = get_model(self.store, parent)
        chosen_tensors(stored_shapes(self.store, row), given)
        older(self.store, row, given)
        return self._submit(given, row.id, name=name or "reset")

    def layer_names(self, ref: str) -> tuple[str, ...]:
        """What `reset_layers` takes, by name: every part of a model, then each of its layers."""
        shapes = stored_shapes(self.store, get_model(self.store, ref))
        return tuple(dict.fromkeys((*part_names(self._config(ref)), *layer_names(shapes))))

    def _config(self, model_id: str) -> DCAEConfig:
        return DCAEConfig.from_json(get_model(self.store, model_id, deleted=True).config)

    def hints(self, ref: str) -> list[Hint]:
        """What a retraining's curves say, with what to try."""
        job, _ = self._retraining(ref)
        losses = metrics.series(self.store, job.id, "loss", max_points=4000)[1]  # a page asks each second
        steps, quality = metrics.series(self.store, job.id, "val_psnr_db")
        return curve_hints(list(losses), [value for step, value in zip(steps, quality, strict=True) if step > 0])

    def preset_start(self, ref: str, preset: str) -> dict[str, Any]:
        """What a preset sets for a model, with the part that it had better hold."""
        return {**preset_values(preset), "frozen_part": self.held_part(ref)}

    def retrain_in_phases(
        self,
        parent: str,
        spec: Mapping[str, Any] | None = None,
        *,
        high_size: int | None = None,
        preset: str | None = None,
        device: str | None = None,
    ) -> list[JobRow]:
        """The paper's three phases as three retrainings, one after the other; see `core.retrain_presets.phases`.

        Everything is checked before the first is submitted.
        """
        row = get_model(self.store, parent)
        values = checked(RetrainSpec, {**(preset_values(preset) if preset else {}), **dict(spec or {})})
        parts = phases(DCAEConfig.from_json(row.config), values, high_size)
        for part in parts:
            self._check_retraining(row.id, part, device)
        made: list[JobRow] = []
        for number, part in enumerate(parts, start=1):
            before = {"job": made[-1].id} if made else row.id
            made.append(self.retrain_model(before, part, device=device, name=model_name("dcae", f"retrained-phase{number}")))
        return made

    def checkpoints(self, ref: str) -> list[Checkpoint]:
        """The checkpoints of a retraining that are still there, newest first."""
        job, spec = self._retraining(ref)
        rows = self._whole(job)
        return [self._seen(row, place < NUM_NEWEST, spec) for place, row in enumerate(rows)]

    def _whole(self, job: JobRow) -> list[CheckpointRow]:
        rows = [row for row in checkpoints.list_checkpoints(self.store, job) if (row.folder / "digest").exists()]
        return sorted(rows, key=lambda row: row.step, reverse=True)

    @staticmethod
    def _seen(row: CheckpointRow, newest: bool, spec: RetrainSpec) -> Checkpoint:
        facts = json.loads((row.folder / "state.json").read_text())
        every = spec.keep_every * spec.steps_per_epoch
        if row.why in checkpoints.KEPT:
            kept = REASONS[row.why]
        elif every and row.step % every == 0:
            kept = REASONS["every"]
        else:
            kept = "newest" if newest else "until the next one"
        size = sum(path.stat().st_size for path in row.folder.iterdir())
        best = facts["best_step"] if facts["best_value"] is not None else None
        return Checkpoint(row.step, REASONS.get(row.why, row.why), kept, size, row.created, row.figures, best)

    def branch(self, ref: str, at: str | int = "last", *, name: str | None = None) -> JobRow:
        """Submits the making of a model of a checkpoint: `best`, `last`, or a step. The retraining itself stays as it is.

        The checkpoint is kept from now on. Raises CoreError where there is none, or none at that step.
        """
        job, spec = self._retraining(ref)
        row, weights = self._checkpoint(job, at)
        checkpoints.keep(self.store, row.id)
        given = BranchSpec(job=job.id, step=row.step, weights=weights, training=spec.identity_spec())  # type: ignore[arg-type]
        return self._submit(given, job.parent_model_id, device=job.device, name=name or "branch", interactive=True)

    def _checkpoint(self, job: JobRow, at: str | int) -> tuple[CheckpointRow, str]:
        rows = self._whole(job)
        if not rows:
            raise CoreError(
                f"{job.name} has no checkpoint yet.", code="no_checkpoint", given=at, next="Ask it for one, or wait a minute."
            )
        if at in ("best", "last"):
            best = self._seen(rows[0], True, RetrainSpec.model_validate(job.spec)).best_step
            if at == "best" and best is None:
                raise CoreError(f"{job.name} has not validated anything yet.", code="no_best", given=at, legal="last, or a step")
            return rows[0], "best" if at == "best" else "trained"
        found = next((row for row in rows if str(row.step) == str(at)), None)
        if found is None:
            legal = ", ".join(["best", "last", *(str(row.step) for row in rows)])
            raise CoreError(f"{job.name} has no checkpoint at step {at}.", code="no_checkpoint", given=at, legal=legal)
        return found, "trained"

    def remaining(self, ref: str) -> RetrainSpec:
        """The settings of a retraining for the steps that it has left: no warm-up, other batches than before.

        Of one that has come to its end: for as many steps once more.
        """
        job, spec = self._retraining(ref)
        left = spec.total_steps - self.steps_done(job.id)
        return changed(with_steps(spec, left or spec.total_steps), warmup_epochs=0, seed=spec.seed + 1)

    def train_on(
        self, ref: str, spec: Mapping[str, Any] | None = None, *, at: str | int = "last", name: str | None = None
    ) -> list[JobRow]:
        """Trains on from a checkpoint with other settings, as a new child; the old retraining stays as it was.

        `spec` changes single fields of `remaining(ref)`; the optimizer begins anew. Returns the two jobs: `branch` and `retrain`.
        Raises CoreError for a retraining that still runs, and for settings that cannot be, before anything is submitted.
        """
        job, _ = self._retraining(ref)
        if job.state not in STANDING:
            raise CoreError(
                f"{job.name} is {job.state}.", code="bad_state", given=job.state, legal=STANDING, next="Pause it first."
            )
        given = changed(self.remaining(job.id), **dict(spec or {}))
        self._check_retraining(str(job.parent_model_id), given, job.device)
        branch = self.branch(job.id, at)
        return [branch, self.retrain_model({"job": branch.id}, given, device=job.device, name=name)]
