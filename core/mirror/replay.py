"""Sends what was not sent yet, in topological order, through a sender process with a time limit for each run.

One mirror at a time for a store (a file lock). A run is marked before it is sent and recorded after, so a mirror that
is killed in between sends that run anew, in place of what it left. A failure stops the descendants of its run only;
three in a row, a sender that dies, or a W&B that cannot be reached end the pass.
"""

from __future__ import annotations

import fcntl
import heapq
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import store.jobs as jobs
from core.errors import CoreError, as_error
from core.mirror.modes import UNREACHABLE, Target, check_folder, has_key, resolve_target
from core.mirror.process import LOG_NAME, ROOT, SenderProcess
from core.settings import Settings
from store import JobRow, MirroredRow, Store, ancestors, edges, get_model, mirrored, set_mirrored

RUN_LIMIT_S = 600.0
"""Limit of one run. Offline takes 0.3 s; the first also bears 1.3 s to import wandb and 1.6 s to start its service."""
MAX_FAILURES = 3
LOCK_NAME = "mirror.lock"
QUEUE_NAME = "mirror-next.lock"
_STARTED: list[subprocess.Popen[bytes]] = []


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
    """How far the mirror is behind: counts of finished jobs, and the last problem."""

    mode: str
    target: str
    num_sent: int
    num_waiting: int
    message: str
    problem: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def status(store: Store, mode: str, folder: Path | str | None = None, *, project: str = "offshoot") -> MirrorStatus:
    """Where the mirror stands, without sending. Raises CoreError(mirror_mode)."""
    target = resolve_target(store, mode, folder, project)
    rows, done = mirrored(store, target.name), finished(store)
    waiting = [job for job in done if not _is_sent(rows.get(job))]
    problems = [as_error(target.problem)] if target.problem is not None else []
    problems += [rows[job].progress["error"] for job in waiting if job in rows and "error" in rows[job].progress]
    problem = problems[0] if problems else None
    return MirrorStatus(mode, target.name, len(done) - len(waiting), len(waiting), target.why, problem)


def sync(
    store: Store,
    mode: str,
    folder: Path | str | None = None,
    *,
    project: str = "offshoot",
    run_limit_s: float = RUN_LIMIT_S,
    wait: bool = False,
) -> MirrorReport:
    """Sends every finished job that was not sent. Raises CoreError(mirror_mode, no_key, mirror_folder, mirror_busy).

    `wait`: a mirror that is at work already is waited for, unless another waits for it.
    """
    target = resolve_target(store, mode, folder, project)
    return _replay(store, target, lambda: finished(store), run_limit_s, wait=wait)


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


def launch(store: Store, settings: Settings) -> bool:
    """Starts a `sync` of its own, detached, and returns at once; False where the settings leave nothing to do.

    For whoever has just finished a job: it neither waits for the mirror nor fails with it.
    """
    if settings.mirror == "off" or (settings.mirror == "auto" and not has_key()):
        return False
    absolute = settings.model_copy(update={"home": store.root})
    with (store.root / LOG_NAME).open("ab") as log:
        _STARTED[:] = [process for process in _STARTED if process.poll() is None]
        _STARTED.append(
            subprocess.Popen(
                [sys.executable, "-m", "core.mirror", absolute.model_dump_json()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
    return True


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


def _is_sent(row: MirroredRow | None) -> bool:
    return row is not None and row.progress.get("state") == "sent"


# Sending ------------------------------------------------------------------------------------------------------------------


def _replay(
    store: Store, target: Target, choose: Callable[[], Sequence[str]], run_limit_s: float, *, wait: bool = False
) -> MirrorReport:
    if target.problem is not None:
        raise target.problem
    wanted = choose()
    left = _waiting(store, target, wanted)
    if target.sends is None:
        message = f"{target.why} Waiting: {_runs(len(left))}." if left else target.why
        return MirrorReport(target.mode, target.name, {}, left, message)
    if not left:
        message = f"Nothing to send: {_runs(len(wanted))} sent before." if wanted else "Nothing to send: no job has ended yet."
        return MirrorReport(target.mode, target.name, {}, [], message)
    check_folder(target.folder)
    with _only_one(store, wait=wait):
        wanted = choose()  # who held the lock may have sent some, and more may have ended
        one_pass = _Pass(store, target, _waiting(store, target, wanted))
        one_pass.run(run_limit_s)
    left = _waiting(store, target, wanted)
    message = f"{_runs(len(one_pass.sent))} sent, {len(left)} waiting. {target.why}"
    notes = list(dict.fromkeys(one_pass.notes))
    return MirrorReport(target.mode, target.name, one_pass.sent, left, message, notes, one_pass.problem)


def _waiting(store: Store, target: Target, wanted: Sequence[str]) -> list[str]:
    rows = mirrored(store, target.name)
    return [job for job in wanted if not _is_sent(rows.get(job))]


class _Pass:
    """One walk over the runs that wait."""

    def __init__(self, store: Store, target: Target, left: Sequence[str]) -> None:
        self.store, self.target, self.left = store, target, left
        self.sent: dict[str, str] = {}
        self.notes: list[str] = []
        self.problem: dict[str, Any] | None = None

    def run(self, run_limit_s: float) -> None:
        needs, before = _needs(self.store, _done(self.store)), mirrored(self.store, self.target.name)
        failed: set[str] = set()
        failures_in_a_row = 0
        with SenderProcess(self.store, self.target, run_limit_s) as sender:
            for job_id in self.left:
                if needs[job_id] & failed:
                    failed.add(job_id)
                    continue
                attempts = 1 + int(before[job_id].progress.get("attempts", 0) if job_id in before else 0)
                self._record(job_id, {"state": "sending", "attempts": attempts})
                answer = sender.ask(job_id)
                if answer["ok"]:
                    said = answer["sent"]
                    self._record(job_id, {"state": "sent", "attempts": attempts, **said}, said["remote"])
                    self.sent[job_id] = said["remote"]
                    self.notes += said["notes"]
                    failures_in_a_row = 0
                    continue
                self._record(job_id, {"state": "failed", "attempts": attempts, "error": answer["error"]})
                self.problem = self.problem or answer["error"]
                failed.add(job_id)
                failures_in_a_row += 1
                hopeless = sender.is_gone or answer["error"]["code"] == UNREACHABLE
                if hopeless or failures_in_a_row >= MAX_FAILURES:
                    break

    def _record(self, job_id: str, progress: dict[str, Any], remote: str = "") -> None:
        set_mirrored(self.store, self.target.name, job_id, remote, progress)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


@contextmanager
def _only_one(store: Store, *, wait: bool = False) -> Iterator[None]:
    """Holds the store's mirror lock. One may wait for it: when it gets the lock it sends what had ended by then, so a
    second who waits would find nothing left."""
    with (store.root / LOCK_NAME).open("a") as lock, (store.root / QUEUE_NAME).open("a") as line:
        try:
            if wait:
                fcntl.flock(line, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(lock, fcntl.LOCK_EX)
                fcntl.flock(line, fcntl.LOCK_UN)
            else:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CoreError(
                "A mirror of this store is at work already.",
                code="mirror_busy",
                given=str(store.root),
                next="Wait until it is done: it sends everything that is finished.",
            ) from None
        yield
