"""What people and workers ask of jobs: pause, resume, cancel, checkpoint, requeue.

A job that is being worked on is asked through its `control` column, which its child reads at each step; one that is not
is moved at once. A paused child stays for a minute: `release` is how it leaves, so that a resume in the same moment is
not lost.
"""

from __future__ import annotations

import json

from sqlmodel import Session

from store.db import Store, execute
from store.errors import StoreError
from store.identity import now
from store.job_rows import ON_DEVICE, STANDING_UNTIL, JobRow, job_id_of, list_jobs, locked_job, resolve_job

CONTROLS = ("pause", "resume", "cancel", "checkpoint")
MAX_REQUEUES = 3

_LEGAL = {
    "blocked": ("pause", "cancel"),
    "queued": ("pause", "cancel"),
    "starting": ("pause", "cancel"),
    "running": ("pause", "cancel", "checkpoint"),
    "pausing": ("resume", "cancel"),
    "paused": ("resume", "cancel"),
    "cancelling": (),
    "failed": ("resume",),
    "cancelled": ("resume",),
    "done": (),
}


def legal_controls(state: str) -> tuple[str, ...]:
    """What may be asked of a job in this state: the buttons to show."""
    return _LEGAL[state]


def request(store: Store, job: str | JobRow, control: str) -> JobRow:
    """Ask a job to pause, resume, cancel or write a checkpoint now. Asking for what already happens is no error.

    Raises StoreError: unknown_job, bad_value (no such control), bad_state.
    """
    if control not in CONTROLS:
        raise StoreError(f"“{control}” cannot be asked of a job.", given=control, legal=list(CONTROLS))
    job_id = resolve_job(store, job)
    with store.write() as session:
        row = locked_job(session, job_id)
        already = {"pause": ("pausing", "paused"), "cancel": ("cancelling", "cancelled")}.get(control, ())
        if row.state in already:
            return row
        if control not in _LEGAL[row.state]:
            raise StoreError(
                f"Job {row.id} is {row.state}, so there is nothing to {control}.",
                code="bad_state",
                given=control,
                legal=list(_LEGAL[row.state]),
                next="Look at the job's state; it may have just changed.",
            )
        if control == "resume":
            resume_in(session, row)
        elif control == "checkpoint":
            until = "" if row.pause_step is None else f" until {row.pause_step}"
            _move(session, row, row.state, f"checkpoint{until}")
        elif row.state in ON_DEVICE or row.pid is not None:
            _move(session, row, "pausing" if control == "pause" else "cancelling", control)
        else:
            ended = control == "cancel"
            _move(session, row, "cancelled" if ended else "paused", "run", ended=now() if ended else None)
            if ended:
                say_blocked(session, row.id)
        return locked_job(session, job_id)


def resume(store: Store, job: str | JobRow) -> JobRow:
    """Let a failed, paused or cancelled job go on from its checkpoints, as a new attempt where its child has gone."""
    return request(store, job, "resume")


def _move(session: Session, row: JobRow, state: str, control: str, *, ended: str | None = None) -> None:
    execute(session, "UPDATE job SET state=?, control=?, ended=? WHERE id=?", (state, control, ended, row.id))


def resume_in(session: Session, row: JobRow) -> None:
    """`resume` inside a transaction."""
    if row.pid is not None or row.state == "pausing":
        # The child is there (or about to be) and reads `control`: it goes on by itself.
        _move(session, row, "running" if row.pid is not None else "starting", "run")
        return
    _queue(session, row, requeues=0)


def _queue(session: Session, row: JobRow, *, requeues: int) -> None:
    waiting = waits_for(session, row.id)
    execute(
        session,
        f"UPDATE job SET state=?, control={STANDING_UNTIL}, message=?, attempt=attempt+?, requeues=?, error=NULL,"
        " eta_s=NULL, pid=NULL,"
        " pid_started=NULL, ended=NULL WHERE id=?",
        (
            "queued" if waiting is None else "blocked",
            waiting or "",
            # A job that never started has used up no attempt.
            int(row.started is not None),
            requeues,
            row.id,
        ),
    )
    say_blocked(session, row.id)


def waits_for(session: Session, job_id: str) -> str | None:
    """Why a job must wait, in words: the first dependency that is not done. None when it need not."""
    found = execute(
        session,
        "SELECT n.id, n.name, n.state, n.message FROM job_dependency d JOIN job n ON n.id=d.needs"
        " WHERE d.job=? AND n.state!='done'"
        " ORDER BY n.state IN ('failed', 'cancelled') DESC, n.state='blocked' DESC, n.id LIMIT 1",
        (job_id,),
    ).fetchone()
    if found is None:
        return None
    needs, name, state, message = found
    if state == "failed":
        return f"Waits for “{name}” ({needs}), which failed: {message}" if message else f"Waits for “{name}”, which failed"
    if state == "cancelled":
        return f"Waits for “{name}” ({needs}), which was cancelled"
    return message if state == "blocked" and "which " in message else f"Waits for “{name}” ({needs})"


def say_blocked(session: Session, job_id: str) -> None:
    """Renew the reasons of all jobs that wait, directly or not, for this one."""
    layer = [job_id]
    while layer:
        following: list[str] = []
        for needs in layer:
            following += [
                row[0]
                for row in execute(
                    session,
                    "SELECT d.job FROM job_dependency d JOIN job j ON j.id=d.job WHERE d.needs=? AND j.state='blocked'",
                    (needs,),
                )
            ]
        for waiting in following:
            execute(session, "UPDATE job SET message=? WHERE id=?", (waits_for(session, waiting) or "", waiting))
        layer = list(dict.fromkeys(following))


def acknowledge(store: Store, job: str | JobRow, control: str) -> None:
    """The child has done what was asked (a checkpoint): back to `run`, unless something else was asked meanwhile."""
    with store.write() as session:
        execute(
            session,
            f"UPDATE job SET control={STANDING_UNTIL} WHERE id=? AND (control=? OR control LIKE ? || ' until %')",
            (job_id_of(job), control, control),
        )


def paused(store: Store, job: str | JobRow) -> JobRow:
    """The child has written its checkpoint and stands still. See the state returned: a resume may have come first."""
    with store.write() as session:
        execute(
            session,
            "UPDATE job SET state='paused', eta_s=NULL WHERE id=? AND state='pausing' AND control='pause'",
            (job_id_of(job),),
        )
        return locked_job(session, job_id_of(job))


def release(store: Store, job: str | JobRow) -> bool:
    """A paused child asks to leave the device. True: it must exit, and a resume will queue the job. False: go on."""
    with store.write() as session:
        left = execute(
            session,
            "UPDATE job SET pid=NULL, pid_started=NULL, control='run' WHERE id=? AND state='paused' AND control='pause'"
            " RETURNING id",
            (job_id_of(job),),
        ).fetchone()
        return left is not None


def orphans(store: Store, device: str) -> list[JobRow]:
    """Jobs that claim to be worked on, for a new worker that holds the device's lock: stop their pids, then requeue."""
    return [row for row in list_jobs(store, (*ON_DEVICE, "paused"), None, device=device) if _claims_device(row)]


def _claims_device(row: JobRow) -> bool:
    return row.state in ON_DEVICE or row.pid is not None


def requeue_orphans(store: Store, device: str) -> list[JobRow]:
    """Put the jobs of a dead worker back: running ones to the queue (three times at most), others where they went.

    The caller holds the device's worker lock and has stopped the processes that `orphans` named. Returns the jobs as
    they are now.
    """
    moved: list[JobRow] = []
    for orphan in orphans(store, device):
        with store.write() as session:
            row = locked_job(session, orphan.id)
            if not _claims_device(row):
                continue
            if row.state == "cancelling":
                _end(session, row, "cancelled", None)
            elif row.state in ("pausing", "paused"):
                execute(
                    session,
                    "UPDATE job SET state='paused', control='run', pid=NULL, pid_started=NULL, eta_s=NULL WHERE id=?",
                    (row.id,),
                )
            elif row.requeues >= MAX_REQUEUES:
                error = json.dumps(
                    {
                        "code": "worker_died",
                        "message": f"The worker died {row.requeues + 1} times while this job ran.",
                        "given": None,
                        "legal": None,
                        "next": "Look at the job's log, then resume it.",
                        "traceback": None,
                    }
                )
                _end(session, row, "failed", error)
            else:
                _queue(session, row, requeues=row.requeues + 1)
            moved.append(locked_job(session, row.id))
    return moved


def _end(session: Session, row: JobRow, state: str, error: str | None) -> None:
    execute(
        session,
        "UPDATE job SET state=?, control='run', error=?, message=CASE WHEN ? IS NULL THEN message ELSE"
        " json_extract(?, '$.message') END, eta_s=NULL, pid=NULL, pid_started=NULL, ended=? WHERE id=?",
        (state, error, error, error, now(), row.id),
    )
    say_blocked(session, row.id)
