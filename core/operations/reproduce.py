"""Reproduce: the chain that made a model, run again from its baseline in order, and compared step by step with the record.

- Each step runs in a scratch store in the job's folder, by the operation and the settings on record, on what the step before it has
  just made: nothing of the record but the baseline's weights goes in, and nothing that is made comes into the store.
- A baseline whose weights are gone, or were changed on disk, is imported again from the source on record.
- A model made of a checkpoint (`branch`): its training is run again up to that step, and the model made of what that reaches.
- A teacher that a spec names by an id which the rerun has not reached is taken from the record; the report says so.
- A paused, killed or resumed job goes on where it was: the scratch store keeps the finished steps and the checkpoints.
- Equal weights are promised on the same device with the same number of threads. The number on record is used where there is one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch

import store as st
import store.jobs as jobs
from core import operations
from core.errors import CoreError
from core.operations.context import Cancelled, Context, Outcome
from core.operations.models import load
from core.reproduction import chain_of
from core.specs import SPECS, ReproduceSpec
from dcaecore import weights_digest
from store import JobRow, ModelRow, Store
from store.cleaning import SCRATCH_NAME
from store.copying import copy_model


@dataclass
class _Place:
    """Which part of the whole a step is, for its progress."""

    number: int
    total: int
    title: str


class StepContext(Context):
    """A step's way to the outside: its files and curves go to the scratch store, all that is asked or told to the job itself."""

    def __init__(self, outer: Context, scratch: Store, job: JobRow, place: _Place, stop_at: int | None = None) -> None:
        super().__init__(scratch, job, outer.settings)
        self.outer, self.place, self.stop_at = outer, place, stop_at
        self.stopped = False
        """Whether the step's own end, not the user, ended it."""

    def log(self, level: str, message: str) -> None:
        super().log(level, message)
        self.outer.log(level, f"{self.place.title}: {message}")

    def progress(self, fraction: float, message: str = "", eta_s: float | None = None, *, force: bool = False) -> None:
        whole = (self.place.number + fraction) / self.place.total
        self.outer.progress(whole, f"{self.place.title}: {message}", force=force)

    def poll(self, steps_done: int | None = None) -> Literal["run", "pause", "cancel", "checkpoint"]:
        asked = self.outer.poll()
        if asked == "checkpoint":
            jobs.acknowledge(self.outer.store, self.outer.job, "checkpoint")
        if asked == "run" and self.stop_at is not None and steps_done is not None and steps_done >= self.stop_at:
            self.stopped = True
            return "cancel"
        return asked

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        return self.outer.wait_paused()


def run(spec: ReproduceSpec, context: Context) -> Outcome:
    """Runs the chain again and tells, for each step, whether its weights are the recorded ones bit for bit, or how far they are."""
    if context.job.parent_model_id is None:
        raise CoreError("Reproducing needs a model.", code="no_parent")
    chain = chain_of(context.store, context.job.parent_model_id)
    folder = context.folder / SCRATCH_NAME
    scratch = st.open_store(folder)
    made: dict[str, str] = {}
    steps: list[dict[str, Any]] = []
    figures: dict[str, dict[str, float | None]] = {}
    try:
        for number, row in enumerate(chain):
            context.check()
            started = time.monotonic()
            place = _Place(number, len(chain) + 1, f"{row.name} ({number + 1} of {len(chain)})")
            notes: list[str] = []
            if not row.parents and row.blob_digest is not None and context.store.blobs.verify(row.blob_digest):
                made[row.id] = copy_model(context.store, scratch, row.id).id
                steps.append({**_told(row, made[row.id]), "operation": "record", "identical": True, "notes": []})
                continue
            with _threads(recorded_threads(context.store, row)):
                job = _again(context, scratch, row, made, place, notes)
                ran_on = {"device": context.device, "threads": torch.get_num_threads()}
            assert job.model_id is not None
            made[row.id] = job.model_id
            found = _difference(context.store, row, scratch, job.model_id)
            steps.append(
                {**_told(row, job.model_id), **found, **ran_on, "operation": job.operation, "notes": notes,
                 "recorded_device": _recorded(context.store, row, "device"),
                 "recorded_threads": recorded_threads(context.store, row), "seconds": time.monotonic() - started}
            )  # fmt: skip
            context.log("info", f"{row.name}: {told(steps[-1])}.")
        if not steps[-1]["identical"]:
            place = _Place(len(chain), len(chain) + 1, "figures")
            figures = _figures(context, scratch, chain[-1], made[chain[-1].id], place)
    finally:
        scratch.close()
    shutil.rmtree(folder)
    return Outcome(result={"identical": all(step["identical"] for step in steps), "steps": steps, "figures": figures})


def told(step: dict[str, Any]) -> str:
    """A step's outcome in words."""
    if step["identical"]:
        return "bit-identical"
    if step.get("relative_difference") is None:
        return str(step["reason"])
    return f"differs by {step['relative_difference']:.3g} of its norm, {step['max_abs_difference']:.3g} at most"


def recorded_threads(store: Store, row: ModelRow) -> int | None:
    """How many threads the job on record used, where it says so."""
    found = _recorded(store, row, "threads")
    return int(found) if found is not None else None


def _recorded(store: Store, row: ModelRow, key: str) -> Any:
    job = _job(store, row)
    if job is not None and job.operation == "branch" and key == "threads" and key not in job.result:
        job = _training(store, job.spec)
    return None if job is None else job.result.get(key, job.device if key == "device" else None)


def _training(store: Store, spec: Mapping[str, Any]) -> JobRow | None:
    """The retraining that a `branch` took a checkpoint of; None where it is not in the store."""
    found = store.rows("SELECT id FROM job WHERE id=?", (spec.get("job", ""),))
    return jobs.get_job(store, found[0][0]) if found else None


def _job(store: Store, row: ModelRow) -> JobRow | None:
    """The job that made a model; None where the model came without it (an archive keeps those that ended well)."""
    if row.job_id is None or not store.rows("SELECT 1 FROM job WHERE id=?", (row.job_id,)):
        return None
    return jobs.get_job(store, row.job_id)


def _told(row: ModelRow, made: str) -> dict[str, Any]:
    return {"model": row.id, "name": row.name, "made": made}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _again(context: Context, scratch: Store, row: ModelRow, made: dict[str, str], place: _Place, notes: list[str]) -> JobRow:
    """The job of a step in the scratch store, run to its end; one that an earlier attempt finished is taken as it is."""
    job = next((job for job in jobs.list_jobs(scratch, None, None) if job.name == f"again {row.id}"), None)
    if job is not None and job.state == "done":
        return job
    if job is None:
        record = _job(context.store, row)
        values = dict(record.spec if record is not None else row.spec)
        operation = str(values.pop("operation", row.spec.get("operation", "")))
        if operation not in SPECS:
            raise CoreError(f"{row.name} was made by “{operation}”, which cannot be run again.", code="unknown_operation",
                            given=operation, legal=sorted(SPECS))  # fmt: skip
        parent = made[row.parent_id] if row.parent_id is not None else None
        if operation == "branch":
            values["job"] = _train_to(context, scratch, row, values, made, place, notes)
        else:
            _fit(context.store, scratch, row, values, made, notes)
        spec = SPECS[operation].model_validate(values).model_dump(mode="json")
        job = jobs.submit(scratch, operation, spec, parent=parent, device=context.device, name=f"again {row.id}")
    else:  # a killed or paused attempt
        jobs.requeue_orphans(scratch, context.device)
        if jobs.get_job(scratch, job).state not in ("queued",):
            jobs.resume(scratch, job)
    return _perform(context, scratch, place)


def _fit(store: Store, scratch: Store, row: ModelRow, values: dict[str, Any], made: dict[str, str], notes: list[str]) -> None:
    """A recorded spec, made to run in the scratch store and in this process."""
    _teacher(store, scratch, row, values, made, notes)
    if values.get("plan"):
        values["plan"] = made[str(values["plan"])]
    _one_process(values, notes)
    _losses(store, scratch, values)


def _one_process(values: dict[str, Any], notes: list[str]) -> None:
    """What several processes trained is run again in this one: the same images in each step, other last bits."""
    if values.get("processes", 1) > 1:
        notes.append(f"{values['processes']} processes trained it; it was run again in one, so the last bits differ.")
        values["processes"] = values["machines"] = 1


def _losses(store: Store, scratch: Store, values: dict[str, Any]) -> None:
    """The inspection that images were drawn by is of the record: it is no model, and was not made by the chain."""
    digest = values.get("loss_table")
    if digest and store.blobs.exists(digest):
        scratch.blobs.put_bytes(store.blobs.read(digest))


def _train_to(
    context: Context,
    scratch: Store,
    row: ModelRow,
    values: Mapping[str, Any],
    made: dict[str, str],
    place: _Place,
    notes: list[str],
) -> str:
    """The training of a model that was made of a checkpoint, run again up to the checkpoint's step; its job in the scratch store."""
    step, name = int(values["step"]), f"training of {row.id}"
    training = next((job for job in jobs.list_jobs(scratch, None, None) if job.name == name), None)
    if training is None:
        record = _training(context.store, values)
        spec = dict(record.spec if record is not None else values["training"])
        spec.pop("operation", None)
        _fit(context.store, scratch, row, spec, made, notes)
        assert row.parent_id is not None, "a checkpoint is of a training, which has a parent"
        full = SPECS["retrain"].model_validate(spec).model_dump(mode="json")
        training = jobs.submit(scratch, "retrain", full, parent=made[row.parent_id], device=context.device, name=name)
    elif not _reached(scratch, training, step):  # a killed or paused attempt
        jobs.requeue_orphans(scratch, context.device)
        if jobs.get_job(scratch, training).state != "queued":
            jobs.resume(scratch, training)
    if not _reached(scratch, training, step):
        _perform(context, scratch, place, stop_at=step)
    if not _reached(scratch, training, step):
        raise CoreError(
            f"The training of {row.name} ended before step {step} when it was run again.", code="no_checkpoint", given=step,
            next="Reproduce the model that the training ended with: its log tells why it ends.",
        )  # fmt: skip
    return training.id


def _reached(scratch: Store, training: JobRow, step: int) -> bool:
    return any(found.step == step and found.folder.is_dir() for found in st.checkpoints.list_checkpoints(scratch, training))


def _perform(context: Context, scratch: Store, place: _Place, stop_at: int | None = None) -> JobRow:
    """Claims the scratch store's one queued job and runs it here; a training that is to stop at a step ends there, cancelled."""
    claimed = jobs.claim(scratch, context.device)
    assert claimed is not None
    job = jobs.set_running(scratch, claimed, os.getpid(), psutil.Process().create_time())
    inner = StepContext(context, scratch, job, place, stop_at)
    try:
        outcome = operations.load(job.operation).run(SPECS[job.operation].model_validate(job.spec), inner)
    except Cancelled:
        if not inner.stopped:
            raise
        return jobs.cancelled(scratch, job)
    finally:
        inner.close()
    return jobs.complete(scratch, job, model=outcome.model, scores=outcome.scores, result=outcome.result)


def _teacher(store: Store, scratch: Store, row: ModelRow, values: dict[str, Any], made: dict[str, str], notes: list[str]) -> None:
    """Lets the scratch store find a teacher by the word that the spec has for it (`baseline` needs none)."""
    word = values.get("teacher")
    recorded = next((parent for role, parent in row.parents if role == "teacher"), None)
    if not word or word == "baseline" or recorded is None:
        return
    try:
        st.resolve_model(scratch, word)
        return
    except st.StoreError:
        pass
    if recorded.startswith(word) or recorded.removeprefix("m_").startswith(word):
        if not store.rows("SELECT 1 FROM model WHERE id=? AND blob_digest IS NOT NULL", (recorded,)):
            raise CoreError(
                f"The teacher {recorded} was not reproduced, and its weights are not in the store any more.",
                code="no_weights",
                given=recorded,
            )
        for ancestor in reversed(st.ancestors(store, recorded)):
            if not scratch.rows("SELECT 1 FROM model WHERE id=?", (ancestor.id,)):
                copy_model(store, scratch, ancestor.id)
        copy_model(store, scratch, recorded)
        notes.append(f"The teacher is the recorded {recorded}: the rerun made another model in its place.")
        return
    st.set_alias(scratch, word, made[recorded])


def _difference(store: Store, row: ModelRow, scratch: Store, made: str) -> dict[str, Any]:
    """Bit-identical, or how far the weights are apart: the largest difference, and the norm of all against the record's norm."""
    again = st.get_model(scratch, made)
    if again.weights_digest == row.weights_digest:
        return {"identical": True, "max_abs_difference": 0.0, "relative_difference": 0.0}
    nothing = {"identical": False, "max_abs_difference": None, "relative_difference": None}
    if row.blob_digest is None or not store.blobs.verify(row.blob_digest):
        return {**nothing, "reason": "differs from the digest on record; the recorded weights are gone or were changed on disk"}
    # `load` refuses tombstones, and a step may be one: the file says it all.
    from dcaecore import load_model

    kept = load_model(store.blobs.path(row.blob_digest))
    assert weights_digest(kept.model.state_dict(), kept.masks) == row.weights_digest, "the record's file is not the record's"
    left, right = kept.model.state_dict(), load(scratch, made).model.state_dict()
    if {k: v.shape for k, v in left.items()} != {k: v.shape for k, v in right.items()}:
        return {**nothing, "reason": "other units were kept, so the weights cannot be compared one by one"}
    largest, apart, norm = 0.0, 0.0, 0.0
    for name, value in left.items():
        was, now = value.double(), right[name].double()
        largest = max(largest, float((was - now).abs().max())) if value.numel() else largest
        apart += float((was - now).square().sum())
        norm += float(was.square().sum())
    return {"identical": False, "max_abs_difference": largest, "relative_difference": (apart / norm) ** 0.5 if norm else None,
            "reason": "the record's weights are all zero" if not norm else ""}  # fmt: skip


def _figures(context: Context, scratch: Store, row: ModelRow, made: str, place: _Place) -> dict[str, dict[str, float | None]]:
    """Quality as on record and of the rerun, on the images of the model's last evaluation; empty where it was never evaluated."""
    known = jobs.list_jobs(context.store, ("done",), 1, operations=("evaluate",), parent=row.id)
    if not known:
        return {}
    if not jobs.list_jobs(scratch, None, 1, operations=("evaluate",)):
        jobs.submit(scratch, "evaluate", known[0].spec, parent=made, device=context.device, name="figures")
    else:
        jobs.requeue_orphans(scratch, context.device)
    _perform(context, scratch, place)
    split = str(known[0].spec["split"])
    before, after = st.scores.scores(context.store, row.id, split), st.scores.scores(scratch, made, split)
    return {key: {"record": before[key], "again": after.get(key)} for key in before}
