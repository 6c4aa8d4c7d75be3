"""Checkpoint folders of jobs. A folder is recorded after its digest was written, so what is listed is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.db import Store, execute
from store.errors import StoreError
from store.identity import now
from store.job_rows import JobRow, job_id_of

KEPT = ("asked", "every", "branch")
"""Reasons that keep a checkpoint from being cleaned away, and that a later one at the same step does not take away."""


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint: absolute `folder`, the step it was taken after, the attempt, why (pause, best...), figures."""

    id: int
    job_id: str
    step: int
    attempt: int
    folder: Path
    why: str
    figures: dict[str, Any]
    created: str


def record(
    store: Store, job: str | JobRow, step: int, folder: Path, why: str, figures: Mapping[str, Any] | None = None
) -> CheckpointRow:
    """Record a finished checkpoint folder, which must lie inside the store; once more replaces the record."""
    job_id = job_id_of(job)
    folder = Path(folder).absolute()
    if not folder.is_relative_to(store.root):
        raise StoreError("A checkpoint lies outside the store.", given=str(folder), legal=str(store.job_folder(job_id)))
    with store.write() as session:
        execute(
            session,
            "INSERT INTO checkpoint (job, step, attempt, folder, why, figures, created)"
            " SELECT id, ?, attempt, ?, ?, ?, ? FROM job WHERE id=?"
            " ON CONFLICT (folder) DO UPDATE SET step=excluded.step, attempt=excluded.attempt,"
            f" why=CASE WHEN checkpoint.why IN {KEPT} THEN checkpoint.why ELSE excluded.why END,"
            " figures=excluded.figures, created=excluded.created",
            (
                int(step),
                str(folder.relative_to(store.root)),
                why,
                json.dumps(dict(figures or {}), sort_keys=True),
                now(),
                job_id,
            ),
        )
    found = latest(store, job_id)
    if found is None:
        raise StoreError(f"There is no job {job_id}.", code="unknown_job", given=job_id, legal="a job's id")
    return next(row for row in list_checkpoints(store, job_id) if row.folder == folder)


def list_checkpoints(store: Store, job: str | JobRow) -> tuple[CheckpointRow, ...]:
    """Checkpoints of a job, newest first (by attempt and step, then by when they were written)."""
    return tuple(
        CheckpointRow(number, job_id, step, attempt, store.root / folder, why, json.loads(figures), created)
        for number, job_id, step, attempt, folder, why, figures, created in store.rows(
            "SELECT id, job, step, attempt, folder, why, figures, created FROM checkpoint WHERE job=?"
            " ORDER BY attempt DESC, step DESC, created DESC",
            (job_id_of(job),),
        )
    )


def latest(store: Store, job: str | JobRow) -> CheckpointRow | None:
    """The checkpoint to resume from: the newest whose folder is still there."""
    return next((row for row in list_checkpoints(store, job) if row.folder.is_dir()), None)


def keep(store: Store, checkpoint_id: int, why: str = "branch") -> None:
    """Keep a checkpoint for one of the reasons of `KEPT`."""
    assert why in KEPT
    with store.write() as session:
        execute(session, "UPDATE checkpoint SET why=? WHERE id=?", (why, checkpoint_id))


def forget(store: Store, checkpoint_id: int) -> None:
    """Drop the record of a checkpoint, before its folder is deleted."""
    with store.write() as session:
        execute(session, "DELETE FROM checkpoint WHERE id=?", (checkpoint_id,))


list = list_checkpoints
