"""The mirror's own process: sends what has ended, again and later where it failed, until nothing is left to wait for.

One follower a store, detached from whoever started it (a page, a verb): no job waits for it or fails with it. It stays while a job
of the store is at work or a run waits to be sent. A failed run is tried again after 5 s, 10 s, ... at most 10 min; where W&B as a
whole cannot be reached, all wait. What was tried when stands in the store's `mirror` table, so the next follower goes on from there.
The target is resolved anew at each look: a key that comes, or a mode that is changed, takes effect within seconds.

While a training runs online, its curves are sent up to the last durable checkpoint: a crash may take back what came after, and W&B
cannot rewind.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import store.jobs as jobs
from core.errors import CoreError
from core.mirror.choice import chosen_settings
from core.mirror.modes import GONE, Target, check_folder, resolve_target
from core.mirror.process import ROOT, SenderProcess
from core.mirror.refusals import FOR_ALL
from core.mirror.replay import RUN_LIMIT_S, Pass, finished, only_one, retry_wait_s, wanted_of
from core.settings import Settings
from store import Store, checkpoints, mirrored
from store.job_rows import JobRow
from store.mirrored import finished_mark, set_mirrored

POLL_S = 2.0
LINGER_S = 30.0
"""A follower without work stays so long: the next job of a chain finds it there."""
GIVE_UP_S = 24 * 3600.0
"""A follower that has sent nothing for so long ends; the next job or page starts another."""
LOCK_NAME = "mirror-follower.lock"
LOG_NAME = "mirror.log"
AT_WORK = ("queued", "starting", "running", "pausing", "cancelling")
LIVE_OPERATION = "retrain"
_STARTED: dict[Path, subprocess.Popen[bytes]] = {}
"""Followers that this process started, by store: kept, so that one that has ended is reaped and none is started twice."""


def ensure_follower(store: Store, settings: Settings) -> bool:
    """Starts a follower, detached, unless there is one or the settings leave nothing to do; True where one was started.

    `settings` are those given, without the page's choice: the follower looks that up itself, again and again.
    """
    chosen = chosen_settings(store, settings)
    target = resolve_target(store, chosen.mirror, project=chosen.wandb_project)
    root = store.root.resolve()
    for key, process in list(_STARTED.items()):
        if process.poll() is not None:
            del _STARTED[key]
    if target.sends is None or root in _STARTED or is_followed(store):
        return False
    absolute = settings.model_copy(update={"home": root})
    with (root / LOG_NAME).open("ab") as log:
        _STARTED[root] = subprocess.Popen(
            # What was not set stays unset: below it stands the page's choice.
            [sys.executable, "-m", "core.mirror", absolute.model_dump_json(exclude_unset=True)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return True


def is_followed(store: Store) -> bool:
    """Whether a follower is at work; a dead one's lock frees itself."""
    path = store.root / LOCK_NAME
    if not path.exists():
        return False
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _following(store: Store) -> Iterator[bool]:
    """Holds the follower's lock; False where another has it. A look at the lock takes it for a moment: hence the tries."""
    with (store.root / LOCK_NAME).open("a") as lock:
        for left in reversed(range(10)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not left:
                    yield False
                    return
                time.sleep(0.02)
            else:
                break
        yield True


def follow(store: Store, settings: Settings) -> None:
    """A follower's whole life; returns at once where there is another."""
    with _following(store) as alone:
        if not alone:
            return
        follower = Follower(store, settings)
        try:
            while (pause_s := follower.turn()) is not None:
                time.sleep(pause_s)
        finally:
            follower.close()


class Follower:
    """The looks at the store, one `turn` each. `clock` counts seconds; `now` is the date that tries are recorded by."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        folder: Path | None = None,
        run_limit_s: float = RUN_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.settings, self.folder, self.run_limit_s, self.clock = store, settings, folder, run_limit_s, clock
        self.live: dict[str, int] = {}
        """Runs that are open at W&B: the step that each was sent up to."""
        self._sender: SenderProcess | None = None
        self._target: Target | None = None
        self._mark: tuple[Any, ...] | None = None
        self._left: list[str] = []
        self._hold_until = 0.0
        self._failures = 0
        self._busy_at = self._sent_at = clock()

    def turn(self) -> float | None:
        """Sends what is due; the seconds until the next look, or None where there is nothing to stay for.

        Raises CoreError(mirror_folder).
        """
        target = self._resolve()
        if target.sends is None:
            return None
        now = self.clock()
        if self._mark != (mark := finished_mark(self.store)):
            self._mark = mark
            self._left = wanted_of(self.store, target, finished(self.store))
            self._sent_at = now
        active = jobs.list_jobs(self.store, AT_WORK, None)
        if self._left or active or self.live:
            self._busy_at = now
        if now >= self._hold_until:
            self._send(target)
            if target.sends == "online":
                self._send_live(target)
        if now - self._busy_at > LINGER_S or now - self._sent_at > GIVE_UP_S:
            return None
        if not self._left and not self.live:
            self.close()
        return POLL_S

    def close(self) -> None:
        """Ends the sender; runs that are open stay resumable."""
        if self._sender is not None:
            for job_id in list(self.live):
                self._leave(job_id, "preempted")
            self._sender.close()
            self._sender = None

    def _resolve(self) -> Target:
        chosen = chosen_settings(self.store, self.settings)
        target = resolve_target(self.store, chosen.mirror, self.folder, project=chosen.wandb_project)
        if target != self._target:
            self.close()
            self._target, self._mark, self._hold_until, self._failures = target, None, 0.0, 0
        return target

    def _open_sender(self, target: Target) -> SenderProcess:
        if self._sender is not None and self._sender.is_gone:
            self.live.clear()
            self._sender.close()
            self._sender = None
        if self._sender is None:
            check_folder(target.folder)
            self._sender = SenderProcess(self.store, target, self.run_limit_s)
        return self._sender

    def _send(self, target: Target) -> None:
        """One pass over the runs whose time has come."""
        if not self._left:
            return
        rows, now = mirrored(self.store, target.name), datetime.now(UTC).isoformat()
        later = {job for job in self._left if job in rows and str(rows[job].progress.get("retry_at", "")) > now}
        due = [job for job in self._left if job not in later]
        if not due:
            return
        try:
            with only_one(self.store):
                one_pass = Pass(self.store, target, due, held=later)
                one_pass.run(self._open_sender(target))
        except CoreError as error:
            if error.code != "mirror_busy":
                raise
            return  # a `mirror sync` is at it
        for job_id in one_pass.sent:
            self.live.pop(job_id, None)
        if one_pass.sent:
            self._sent_at = self.clock()
        self._left = [job for job in self._left if job not in one_pass.settled]
        if one_pass.is_hopeless and self._sender is not None:
            # wandb keeps what a server told it for as long as its process lives: the next try begins anew.
            self._sender.kill()
        self._after(one_pass.is_hopeless)

    def _after(self, failed: bool) -> None:
        """All wait where W&B cannot be reached, longer each time."""
        self._failures = self._failures + 1 if failed else 0
        self._hold_until = self.clock() + retry_wait_s(self._failures) if failed else 0.0

    # Runs of jobs that are at work ----------------------------------------------------------------------------------------

    def _send_live(self, target: Target) -> None:
        rows = mirrored(self.store, target.name)
        for job in jobs.list_jobs(self.store, ("running", "pausing"), None, operations=(LIVE_OPERATION,)):
            checkpoint = checkpoints.latest(self.store, job)
            if checkpoint is None or checkpoint.step <= self.live.get(job.id, 0):
                continue
            if job.id in rows and rows[job.id].progress.get("state") == "gone":
                continue
            if not self._append(target, job, checkpoint.step):
                return
        for job_id in list(self.live):
            state = jobs.get_job(self.store, job_id).state
            if state in ("paused", "failed", "cancelled"):
                self._leave(job_id, "preempted" if state == "paused" else "failed")

    def _append(self, target: Target, job: JobRow, step: int) -> bool:
        answer = self._open_sender(target).ask({"job": job.id, "until": step})
        if answer["ok"]:
            self.live[job.id] = step
            progress = {"state": "live", "step": step, **answer["sent"]}
            set_mirrored(self.store, target.name, job.id, answer["sent"]["remote"], progress)
            return True
        error = answer["error"]
        state = "gone" if error["code"] == GONE else "failed"
        set_mirrored(self.store, target.name, job.id, "", {"state": state, "error": error})
        if state == "failed":
            self._after(True)
        return error["code"] not in FOR_ALL and not self._open_sender(target).is_gone

    def _leave(self, job_id: str, state: str) -> None:
        """Ends an open run for now: W&B shows it as preempted (paused) or failed, and takes it up again later."""
        del self.live[job_id]
        if self._sender is not None and not self._sender.is_gone:
            self._sender.ask({"job": job_id, "leave": state})


def note_end(error: BaseException) -> str:
    """A line for the log of a follower that ends with an error."""
    return f"{datetime.now(UTC).isoformat(timespec='seconds')} pid {os.getpid()}: {type(error).__name__}: {error}\n"
