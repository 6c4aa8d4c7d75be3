"""“Run N more steps, then pause”: the step stands behind the control of a job, as in `run until 120`.

It lasts until the step is reached or something else is asked: a checkpoint on the way, a dead worker and a queue in
between leave it standing; a pause, a cancel and a plain resume end it.
"""

from __future__ import annotations

from store.db import Store, execute
from store.errors import StoreError
from store.job_control import resume_in
from store.job_rows import JobRow, job_id_of, locked_job, resolve_job


def reached(store: Store, job: str | JobRow) -> bool:
    """The child has come to the step: its job pauses. False where something else was asked meanwhile."""
    with store.write() as session:
        moved = execute(
            session,
            "UPDATE job SET state='pausing', control='pause' WHERE id=? AND control LIKE '% until %' AND state='running'"
            " RETURNING id",
            (job_id_of(job),),
        ).fetchone()
        return moved is not None


def run_until(store: Store, job: str | JobRow, step: int) -> JobRow:
    """Ask a job to pause once it has done `step` steps in all; one that stands still goes on.

    Raises StoreError: unknown_job, bad_state (it is done, or being cancelled).
    """
    job_id = resolve_job(store, job)
    with store.write() as session:
        row = locked_job(session, job_id)
        if row.state in ("done", "cancelling"):
            raise StoreError(
                f"Job {row.id} is {row.state}: it cannot run on.",
                code="bad_state",
                given=row.state,
                legal=["blocked", "queued", "starting", "running", "pausing", "paused", "failed", "cancelled"],
                next="Train the model that it made further, as a new job.",
            )
        if row.state in ("pausing", "paused", "failed", "cancelled"):
            resume_in(session, row)
        execute(session, "UPDATE job SET control=? WHERE id=?", (f"run until {int(step)}", job_id))
        return locked_job(session, job_id)
