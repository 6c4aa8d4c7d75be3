"""Sends what was not sent yet, in topological order, through a sender process with a time limit for each run.

One mirror at a time for a store (a file lock). A run is marked before it is sent and recorded after, so a mirror that
is killed in between sends that run again: offline in place of what it left, online from where W&B says that it stands.
A failure stops the descendants of its run only, and is tried again later (see `retry_wait_s`); three in a row, a sender
that dies, or a W&B that cannot be reached end the pass. A run that its user has deleted at W&B is left alone.
"""

from __future__ import annotations

import fcntl
import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import store.jobs as jobs
from core.errors import CoreError, as_error
from core.mirror.modes import GONE, Target, check_folder, resolve_target
from core.mirror.offline import write_sync_script
from core.mirror.process import SenderProcess
from core.mirror.refusals import FOR_ALL
from store import JobRow, MirroredRow, Store, ancestors, edges, get_model, get_models, mirrored, set_mirrored
from store.mirrored import SETTLED, mirror_counts

RUN_LIMIT_S = 600.0
"""Limit of one run. Offline takes 0.3 s; the first also bears 1.3 s to import wandb and 1.6 s to start its service."""
MAX_FAILURES = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 600.0
LOCK_NAME = "mirror.lock"


@dataclass(frozen=True)
class MirrorReport:
    """What one pass did. `sent` maps job ids to their runs; `waiting` are finished jobs that are not sent yet.

    `message` says in one line where things stand; `problem` is the first error (code, message, given, legal, next).
    """

    mode: str
    target: str
    sent: dict[str, str]
    waiting: list[str]
    message: str
    notes: list[str] = field(default_factory=list)
    problem: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MirrorStatus:
    """How far the mirror is behind: counts of finished jobs, the last problem and when it is tried again (ISO, UTC).

    `sends`: whether anything leaves in this mode, here and now.
    """

    mode: str
    target: str
    num_sent: int
    num_waiting: int
    message: str
    problem: dict[str, Any] | None
    next_try: str | None = None
    sends: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def status(store: Store, mode: str, folder: Path | str | None = None, *, project: str = "offshoot") -> MirrorStatus:
    """Where the mirror stands, without sending, in a few milliseconds. Raises CoreError(mirror_mode)."""
    target = resolve_target(store, mode, folder, project)
    counts = mirror_counts(store, target.name)
    failed = counts.errors[0] if counts.errors else {}
    problem = as_error(target.problem) if target.problem is not None else failed.get("error")
    next_try = failed.get("retry_at") if target.sends is not None else None
    return MirrorStatus(
        target.mode, target.name, counts.num_settled, counts.num_waiting, target.why, problem, next_try, target.sends is not None
    )


def sync(
    store: Store,
    mode: str,
    folder: Path | str | None = None,
    *,
    project: str = "offshoot",
    run_limit_s: float = RUN_LIMIT_S,
) -> MirrorReport:
    """Sends every finished job that was not sent. Raises CoreError(mirror_mode, no_key, mirror_folder, mirror_busy)."""
    target = resolve_target(store, mode, folder, project)
    return _replay(store, target, lambda: finished(store), run_limit_s)


def mirror_branch(
    store: Store,
    model_ref: str,
    mode: str,
    folder: Path | str | None = None,
    *,
    project: str = "offshoot",
    run_limit_s: float = RUN_LIMIT_S,
) -> MirrorReport:
    """Sends the finished jobs of a model and of all that it goes back to: what made, judged or timed them.

    Raises CoreError as `sync` does, and StoreError for an unknown model.
    """
    model = get_model(store, model_ref)
    line = {model.id, *(row.id for row in ancestors(store, model.id))}

    def of_the_branch() -> list[str]:
        rows = {job.id: job for job in _done(store)}
        return [ref for ref in finished(store) if (rows[ref].model_id or rows[ref].parent_model_id) in line]

    return _replay(store, resolve_target(store, mode, folder, project), of_the_branch, run_limit_s)


# Order --------------------------------------------------------------------------------------------------------------------


def _done(store: Store) -> list[JobRow]:
    return sorted(jobs.list_jobs(store, ("done",), None), key=lambda job: (job.ended or "", job.id))


def _needs(store: Store, done: Sequence[JobRow]) -> dict[str, set[str]]:
    """For each finished job, the finished jobs that made the models that it goes back to directly."""
    makers: dict[str, str] = {}
    for job in done:
        if job.model_id is not None:
            makers.setdefault(job.model_id, job.id)
    parents: dict[str, set[str]] = {}
    for edge in edges(store):
        parents.setdefault(edge.child, set()).add(edge.parent)
    needs: dict[str, set[str]] = {}
    for job in done:
        models = {job.parent_model_id, *(parents.get(job.model_id, ()) if job.model_id else ())}
        needs[job.id] = {makers[model] for model in models if model in makers and makers[model] != job.id}
    return needs


def finished(store: Store) -> list[str]:
    """Ids of all jobs that ended well, each after those that made its parents, else by when they ended."""
    done = _done(store)
    place = {job.id: number for number, job in enumerate(done)}
    sorter = TopologicalSorter(_needs(store, done))
    sorter.prepare()
    order: list[str] = []
    ready: list[int] = []
    while sorter.is_active():
        for job_id in sorter.get_ready():
            heapq.heappush(ready, place[job_id])
        order.append(done[heapq.heappop(ready)].id)
        sorter.done(order[-1])
    return order


def is_settled(row: MirroredRow | None) -> bool:
    """Whether nothing of a job is to be sent any more."""
    return row is not None and row.progress.get("state") in SETTLED


def retry_wait_s(failures: int) -> float:
    """How long a run waits after so many failures: twice as long each time."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(20, failures - 1))


# Sending ------------------------------------------------------------------------------------------------------------------


def _replay(store: Store, target: Target, choose: Callable[[], Sequence[str]], run_limit_s: float) -> MirrorReport:
    if target.problem is not None:
        raise target.problem
    wanted = choose()
    left = wanted_of(store, target, wanted)
    if target.sends is None:
        message = f"{target.why} Waiting: {_runs(len(left))}." if left else target.why
        return MirrorReport(target.mode, target.name, {}, left, message)
    if not left:
        message = f"Nothing to send: {_runs(len(wanted))} sent before." if wanted else "Nothing to send: no job has ended yet."
        return MirrorReport(target.mode, target.name, {}, [], message)
    check_folder(target.folder)
    with only_one(store):
        wanted = choose()  # who held the lock may have sent some, and more may have ended
        one_pass = Pass(store, target, wanted_of(store, target, wanted))
        with SenderProcess(store, target, run_limit_s) as sender:
            one_pass.run(sender)
    left = wanted_of(store, target, wanted)
    message = f"{_runs(len(one_pass.sent))} sent, {len(left)} waiting. {target.why}"
    notes = list(dict.fromkeys(one_pass.notes))
    return MirrorReport(target.mode, target.name, one_pass.sent, left, message, notes, one_pass.problem)


def wanted_of(store: Store, target: Target, chosen: Sequence[str]) -> list[str]:
    """Those of some jobs that a target is still to get, in their order."""
    rows = mirrored(store, target.name)
    return [job for job in chosen if not is_settled(rows.get(job))]


class Pass:
    """One walk over runs that wait. `held` are others that wait: their descendants wait with them."""

    def __init__(self, store: Store, target: Target, left: Sequence[str], held: Collection[str] = ()) -> None:
        self.store, self.target, self.left = store, target, left
        self.sent: dict[str, str] = {}
        self.settled: set[str] = set()
        self.notes: list[str] = []
        self.problem: dict[str, Any] | None = None
        self.is_hopeless = False
        """The pass was broken off: another run would hardly have fared better."""
        self._failed = set(held)

    def run(self, sender: SenderProcess) -> None:
        """Sends run by run through an open sender, and records each."""
        needs, before = _needs(self.store, _done(self.store)), mirrored(self.store, self.target.name)
        failures_in_a_row = 0
        for job_id in self.left:
            if needs[job_id] & self._failed:
                self._failed.add(job_id)
                continue
            attempts = 1 + int(before[job_id].progress.get("attempts", 0) if job_id in before else 0)
            self._record(job_id, {"state": "sending", "attempts": attempts})
            answer = sender.ask({"job": job_id}, num_bytes=self._weight_bytes(job_id))
            if answer["ok"]:
                said = answer["sent"]
                self._record(job_id, {"state": "sent", "attempts": attempts, **said}, said["remote"])
                self.sent[job_id] = said["remote"]
                self.settled.add(job_id)
                self.notes += said["notes"]
                failures_in_a_row = 0
                continue
            error = answer["error"]
            self.problem = self.problem or error
            if error["code"] == GONE:
                self._record(job_id, {"state": "gone", "attempts": attempts, "error": error})
                self.settled.add(job_id)
                continue
            retry_at = datetime.now(UTC) + timedelta(seconds=retry_wait_s(attempts))
            self._record(job_id, {"state": "failed", "attempts": attempts, "error": error, "retry_at": retry_at.isoformat()})
            self._failed.add(job_id)
            failures_in_a_row += 1
            self.is_hopeless = sender.is_gone or error["code"] in FOR_ALL or failures_in_a_row >= MAX_FAILURES
            if self.is_hopeless:
                break
        if self.sent and self.target.sends == "offline":
            rows = mirrored(self.store, self.target.name)
            sent = [job_id for job_id in finished(self.store) if job_id in rows and rows[job_id].remote]
            write_sync_script(self.target.folder, [(job_id, rows[job_id].remote) for job_id in sent])

    def _weight_bytes(self, job_id: str) -> int:
        """Of the models that go with a run; W&B takes over only what it does not have, so this is the most."""
        job = jobs.get_job(self.store, job_id)
        rows = get_models(self.store, [ref for ref in (job.model_id, job.parent_model_id) if ref])
        return sum(row.bytes or 0 for row in rows.values())

    def _record(self, job_id: str, progress: dict[str, Any], remote: str = "") -> None:
        set_mirrored(self.store, self.target.name, job_id, remote, progress)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


@contextmanager
def only_one(store: Store) -> Iterator[None]:
    """Holds the store's mirror lock while runs are sent. Raises CoreError(mirror_busy)."""
    with (store.root / LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CoreError(
                "A mirror of this store is at work already.",
                code="mirror_busy",
                given=str(store.root),
                next="Wait until it is done: it sends everything that is finished.",
            ) from None
        yield
