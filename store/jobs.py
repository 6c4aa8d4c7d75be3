"""The queue: pages insert jobs, one worker a device claims them, children report.

States: blocked -> queued -> starting -> running -> done | failed | cancelled, with pausing, paused and cancelling. A
blocked job waits for the jobs that it depends on; when one of those fails or is cancelled it stays blocked and says
why. Completion is one transaction: model, edges, scores and the job's end are there together or not at all.

A child that was given up (its job requeued or resumed) may still be alive: what it then reports is refused by its
attempt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlmodel import Session

from store.ancestry import NewModel, add_model_in
from store.db import Store, execute
from store.errors import StoreError
from store.identity import new_job_id, now
from store.job_control import (
    acknowledge,
    orphans,
    paused,
    release,
    request,
    requeue_orphans,
    resume,
    say_blocked,
    waits_for,
)
from store.job_rows import (
    ACTIVE,
    ENDED,
    ON_DEVICE,
    STANDING_UNTIL,
    STATES,
    WAITING,
    JobRow,
    get_job,
    job_id_of,
    list_jobs,
    locked_job,
    read_control,
    read_request,
    resolve_job,
)
from store.model_rows import resolve_model
from store.models import Job, JobDependency
from store.references import need_blob
from store.run_until import reached, run_until
from store.scores import NewScores, put_measurement_in, put_new_scores, stored_images
from store.workers import WorkerLock, WorkerRow, get_worker, lock_worker, register_worker, worker_alive

__all__ = [
    "ACTIVE",
    "ENDED",
    "ON_DEVICE",
    "STATES",
    "WAITING",
    "JobRow",
    "WorkerLock",
    "WorkerRow",
    "acknowledge",
    "cancelled",
    "claim",
    "complete",
    "fail",
    "get_job",
    "get_worker",
    "heartbeat",
    "list_jobs",
    "lock_worker",
    "orphans",
    "paused",
    "reached",
    "read_control",
    "read_request",
    "register_worker",
    "release",
    "request",
    "requeue_orphans",
    "resume",
    "run_until",
    "set_progress",
    "set_running",
    "submit",
    "worker_alive",
]


def submit(
    store: Store,
    operation: str,
    spec: Mapping[str, Any],
    *,
    parent: str | Mapping[str, str] | None = None,
    device: str,
    depends_on: Sequence[str] = (),
    name: str | None = None,
    interactive: bool = False,
    pause_step: int | None = None,
) -> JobRow:
    """Queue a job. `parent` is a model, or `{"job": id}`: the model that job makes (or works on, when it makes none).

    `pause_step`: it pauses once so many steps are done, as `run_until` asks of a job that is there already.

    Raises StoreError: unknown_model, unknown_job, ambiguous, deleted.
    """
    parent_model = parent_job = None
    if isinstance(parent, Mapping):
        if set(parent) != {"job"}:
            raise StoreError("A parent is a model or a job.", given=dict(parent), legal='an id, or {"job": id}')
        parent_job = resolve_job(store, parent["job"])
    elif parent is not None:
        parent_model = resolve_model(store, parent)
    needs = list(dict.fromkeys([*([parent_job] if parent_job else []), *(resolve_job(store, ref) for ref in depends_on)]))
    job_id = new_job_id()
    text = json.dumps(dict(spec), sort_keys=True, allow_nan=False)
    with store.write() as session:
        job = Job(
            id=job_id,
            name=name or operation,
            operation=operation,
            spec=text,
            state="queued",
            device=device,
            interactive=int(interactive),
            control="run" if pause_step is None else f"run until {int(pause_step)}",
            parent_model_id=parent_model,
            parent_job_id=parent_job,
            created=now(),
        )
        session.add(job)
        session.flush()
        session.add_all(JobDependency(job=job_id, needs=need) for need in needs)
        session.flush()
        waiting = waits_for(session, job_id)
        if waiting is not None:
            execute(session, "UPDATE job SET state='blocked', message=? WHERE id=?", (waiting, job_id))
    return get_job(store, job_id)


def claim(store: Store, device: str, worker: str = "") -> JobRow | None:
    """Take the next queued job of a device (interactive ones first, then by age) into `starting`; else None.

    Its parent `{"job": id}` is resolved here. `worker` is only told in the message.
    """
    queued = "SELECT id FROM job WHERE state='queued' AND device=? ORDER BY interactive DESC, id LIMIT 1"
    # A worker polls this five times a second: a look without a lock first.
    if not store.rows(queued, (device,)):
        return None
    with store.write() as session:
        claimed = execute(
            session,
            f"UPDATE job SET state='starting', control={STANDING_UNTIL}, started=coalesce(started, ?), heartbeat=?, pid=NULL,"
            " pid_started=NULL, ended=NULL, message=?, parent_model_id=coalesce(parent_model_id,"
            " (SELECT coalesce(p.model_id, p.parent_model_id) FROM job p WHERE p.id=job.parent_job_id))"
            f" WHERE id=({queued}) RETURNING id",
            (now(), time.time(), f"Starting on {worker or device}", device),
        ).fetchone()
        return None if claimed is None else locked_job(session, claimed[0])


def _reporting(session: Session, job: str | JobRow, attempt: int | None) -> JobRow:
    """The job of a report, refused when it has ended or another attempt has taken over."""
    row = locked_job(session, job_id_of(job))
    if attempt is None and isinstance(job, JobRow):
        attempt = job.attempt
    if attempt is not None and attempt != row.attempt:
        raise StoreError(
            f"Attempt {attempt} of job {row.id} was given up; attempt {row.attempt} has taken over.",
            code="stale_attempt",
            given=attempt,
            legal=row.attempt,
            next="Stop this process.",
        )
    if row.state in ENDED:
        raise StoreError(f"Job {row.id} is {row.state} already.", code="bad_state", given=row.state, legal=[*ON_DEVICE, "paused"])
    return row


def set_running(store: Store, job: str | JobRow, pid: int, start_time: float, *, attempt: int | None = None) -> JobRow:
    """The job's child is known (pid and start time) and at work; a pause or cancel asked for meanwhile stands."""
    with store.write() as session:
        row = _reporting(session, job, attempt)
        execute(
            session,
            "UPDATE job SET state=CASE WHEN state IN ('starting', 'paused') AND control NOT IN ('pause', 'cancel')"
            " THEN 'running' ELSE state END, pid=?, pid_started=?, heartbeat=?,"
            " message=CASE WHEN state='starting' THEN '' ELSE message END WHERE id=?",
            (pid, start_time, time.time(), row.id),
        )
        return locked_job(session, row.id)


def heartbeat(store: Store, job: str | JobRow) -> None:
    """The child is alive."""
    with store.write() as session:
        execute(session, "UPDATE job SET heartbeat=? WHERE id=?", (time.time(), job_id_of(job)))


def set_progress(store: Store, job: str | JobRow, fraction: float, message: str = "", eta_s: float | None = None) -> None:
    """How far the job is ([0, 1]), in words, and the seconds left; also a heartbeat. Each call commits."""
    with store.write() as session:
        execute(
            session,
            "UPDATE job SET fraction=?, message=?, eta_s=?, heartbeat=? WHERE id=?",
            (min(max(float(fraction), 0.0), 1.0), message, eta_s, time.time(), job_id_of(job)),
        )


def complete(
    store: Store,
    job: str | JobRow,
    *,
    model: NewModel | None = None,
    scores: Sequence[NewScores] = (),
    measurements: Sequence[Mapping[str, Any]] = (),
    result: Mapping[str, Any] | None = None,
    attempt: int | None = None,
) -> JobRow:
    """End a job well, in one transaction. A model whose identity is there already is linked instead of stored twice.

    Scores without a model of their own belong to the model made, else to the one worked on. Blobs must be written
    before; a `*_digest` in `result` that names one keeps it. Jobs that waited only for this one are queued. Raises
    StoreError(stale_attempt, bad_state, missing_blob, disk_full...).
    """
    images = [stored_images(store, entry) for entry in scores]
    text = json.dumps(dict(result or {}), sort_keys=True)
    with store.write() as session:
        row = _reporting(session, job, attempt)
        made = None
        if model is not None:
            made = add_model_in(store, session, model if model.job else replace(model, job=row.id))
        for entry, pictures in zip(scores, images, strict=True):
            put_new_scores(store, session, entry, pictures, model_id=made or row.parent_model_id, job_id=row.id)
        for measurement in measurements:
            put_measurement_in(session, measurement, job_id=row.id)
        for role, digest in (result or {}).items():
            # A plan or a score array that the result names by its digest must outlive the clean-up.
            if role.endswith("_digest") and isinstance(digest, str) and store.blobs.holds(digest):
                need_blob(store, session, digest, "artifact", "job", row.id, role)
        execute(
            session,
            "UPDATE job SET state='done', control='run', fraction=1, message='', eta_s=NULL, error=NULL, pid=NULL,"
            " pid_started=NULL, model_id=?, result=?, ended=? WHERE id=?",
            (made, text, now(), row.id),
        )
        execute(
            session,
            "UPDATE job SET state='queued', message='' WHERE state='blocked' AND id IN"
            " (SELECT job FROM job_dependency WHERE needs=?) AND NOT EXISTS (SELECT 1 FROM job_dependency d"
            " JOIN job n ON n.id=d.needs WHERE d.job=job.id AND n.state!='done')",
            (row.id,),
        )
        return locked_job(session, row.id)


def fail(
    store: Store,
    job: str | JobRow,
    error: Mapping[str, Any],
    traceback: str | None = None,
    *,
    attempt: int | None = None,
) -> JobRow:
    """End a job as failed with `error` (code, message, given, legal, next) and a traceback or signal; resumable.

    Jobs that wait for it stay blocked and say why.
    """
    with store.write() as session:
        row = _reporting(session, job, attempt)
        kept = json.dumps({**error, "traceback": traceback}, default=repr)
        execute(
            session,
            "UPDATE job SET state='failed', control='run', error=?, message=?, eta_s=NULL, pid=NULL, pid_started=NULL,"
            " ended=? WHERE id=?",
            (kept, str(error.get("message", "")), now(), row.id),
        )
        say_blocked(session, row.id)
        return locked_job(session, row.id)


def cancelled(store: Store, job: str | JobRow, *, attempt: int | None = None) -> JobRow:
    """End a job as cancelled: its child has stopped. Checkpoints stay, so that it can be resumed."""
    with store.write() as session:
        row = _reporting(session, job, attempt)
        execute(
            session,
            "UPDATE job SET state='cancelled', control='run', eta_s=NULL, pid=NULL, pid_started=NULL, ended=? WHERE id=?",
            (now(), row.id),
        )
        say_blocked(session, row.id)
        return locked_job(session, row.id)
