"""Jobs as they leave the store, and how they are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session

from store.db import Store, execute
from store.errors import StoreError
from store.identity import MIN_PREFIX_DIGITS

STATES = (
    "blocked",
    "queued",
    "starting",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "done",
    "failed",
    "cancelled",
)
WAITING = ("blocked", "queued")
ON_DEVICE = ("starting", "running", "pausing", "cancelling")
ENDED = ("done", "failed", "cancelled")
ACTIVE = tuple(state for state in STATES if state not in ENDED)

_COLUMNS = (
    "id, name, operation, spec, state, control, fraction, message, eta_s, device, interactive, pid, pid_started,"
    " heartbeat,"
    " attempt, requeues, error, model_id, parent_model_id, parent_job_id, result, created, started, ended"
)
# Dependencies ride along as one text, so that a list stays one query.
_SELECT = f"SELECT {_COLUMNS}, (SELECT group_concat(d.needs, ' ') FROM job_dependency d WHERE d.job=job.id) FROM job"


@dataclass(frozen=True)
class JobRow:
    """One job, detached. `heartbeat` and `pid_started` are seconds since 1970, `fraction` is in [0, 1], times ISO UTC.

    `model_id` is the model that it made (or found already made); `parent_model_id` the one it works on, once known;
    `parent_job_id` the job whose model it will work on. `pid` is set while a child process belongs to it.
    """

    id: str
    name: str
    operation: str
    spec: dict[str, Any]
    state: str
    control: str
    fraction: float
    message: str
    eta_s: float | None
    device: str
    interactive: bool
    pid: int | None
    pid_started: float | None
    heartbeat: float | None
    attempt: int
    requeues: int
    error: dict[str, Any] | None
    model_id: str | None
    parent_model_id: str | None
    parent_job_id: str | None
    result: dict[str, Any]
    created: str
    started: str | None
    ended: str | None
    depends_on: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def ended_well(self) -> bool:
        return self.state == "done"

    @property
    def pause_step(self) -> int | None:
        """The step that it will pause at by itself; None where it runs to its end."""
        return _request(self.control)[1]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return {**asdict(self), "depends_on": list(self.depends_on)}


_NAMES = tuple(JobRow.__dataclass_fields__)


def _rows(found: Sequence[Sequence[Any]]) -> list[JobRow]:
    # One JSON parse and no generated __init__ for a whole list: pages read 200 jobs each second.
    specs = json.loads(f"[{','.join([row[3] for row in found])}]")
    results = json.loads(f"[{','.join([row[20] for row in found])}]")
    made = []
    for row, spec, result in zip(found, specs, results, strict=True):
        job = object.__new__(JobRow)
        fields = job.__dict__
        fields.update(zip(_NAMES, row, strict=True))
        fields["spec"], fields["result"] = spec, result
        fields["interactive"] = bool(row[10])
        fields["error"] = json.loads(row[16]) if row[16] else None
        fields["depends_on"] = tuple(sorted(row[24].split())) if row[24] else ()
        made.append(job)
    return made


def job_id_of(job: str | JobRow) -> str:
    """The id of a job given as a row or as its full id."""
    return job.id if isinstance(job, JobRow) else job


def resolve_job(store: Store, ref: str | JobRow) -> str:
    """The id that `ref` means: a row, an id, or a unique prefix of 6 or more digits. Raises StoreError."""
    ref = job_id_of(ref).strip()
    found = store.rows("SELECT id FROM job WHERE id=?", (ref,))
    digits = ref.removeprefix("j_")
    if not found and len(digits) >= MIN_PREFIX_DIGITS and all(digit in "0123456789abcdef" for digit in digits):
        found = store.rows("SELECT id FROM job WHERE id>=? AND id<? LIMIT 11", (f"j_{digits}", f"j_{digits}g"))
    if len(found) > 1:
        raise StoreError(
            f"“{ref}” fits more than one job.",
            code="ambiguous",
            given=ref,
            legal=[row[0] for row in found[:10]],
            next="Give the full id, or more of its digits (the last ones differ).",
        )
    if not found:
        raise StoreError(
            f"There is no job “{ref}”.",
            code="unknown_job",
            given=ref,
            legal=f"an id, or {MIN_PREFIX_DIGITS} or more of its first digits",
            next="`python -m core jobs` lists all jobs.",
        )
    return str(found[0][0])


def get_job(store: Store, ref: str | JobRow) -> JobRow:
    """One job, as it is now. Raises StoreError(unknown_job, ambiguous)."""
    return _rows(store.rows(f"{_SELECT} WHERE id=?", (resolve_job(store, ref),)))[0]


def list_jobs(
    store: Store,
    states: Sequence[str] | None = None,
    limit: int | None = 200,
    *,
    device: str | None = None,
    operations: Sequence[str] | None = None,
    parent: str | None = None,
) -> list[JobRow]:
    """Jobs, newest first; `states`, `device`, `operations` and `parent` (a model's id) narrow them."""
    where, parameters = "WHERE 1", []
    if states is not None:
        _check_states(states)
        where += f" AND state IN ({','.join('?' * len(states))})"
        parameters += list(states)
    if device is not None:
        where += " AND device=?"
        parameters.append(device)
    if operations is not None:
        where += f" AND operation IN ({','.join('?' * len(operations))})"
        parameters += list(operations)
    if parent is not None:
        where += " AND parent_model_id=?"
        parameters.append(parent)
    tail = f" LIMIT {int(limit)}" if limit is not None else ""
    return _rows(store.rows(f"{_SELECT} {where} ORDER BY id DESC{tail}", parameters))


def _check_states(states: Sequence[str]) -> None:
    unknown = [state for state in states if state not in STATES]
    if unknown:
        raise StoreError(f"“{unknown[0]}” is no state of a job.", given=unknown[0], legal=list(STATES))


def read_control(store: Store, job: str | JobRow) -> str:
    """run, pause, cancel or checkpoint: what the job's child is asked to do now. Cheap enough for each step (25 us)."""
    return read_request(store, job)[0]


def read_request(store: Store, job: str | JobRow) -> tuple[str, int | None]:
    """`read_control`, and the step to pause at where one was asked for (`store.run_until`)."""
    found = store.rows("SELECT control FROM job WHERE id=?", (job_id_of(job),))
    if not found:
        raise StoreError(f"There is no job {job_id_of(job)}.", code="unknown_job", given=job_id_of(job), legal="a job's id")
    return _request(found[0][0])


STANDING_UNTIL = "CASE WHEN control LIKE '% until %' THEN 'run' || substr(control, instr(control, ' until ')) ELSE 'run' END"
"""SQL: back to `run`, with the step to pause at where one was asked for."""


def _request(control: str) -> tuple[str, int | None]:
    verb, _, step = control.partition(" until ")
    return verb, int(step) if step else None


def locked_job(session: Session, job_id: str) -> JobRow:
    """The job as the open write transaction sees it. Raises StoreError(unknown_job)."""
    row = execute(session, f"{_SELECT} WHERE id=?", (job_id,)).fetchone()
    if row is None:
        raise StoreError(f"There is no job {job_id}.", code="unknown_job", given=job_id, legal="a job's id")
    return _rows([row])[0]
