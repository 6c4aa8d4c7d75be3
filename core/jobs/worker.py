"""The worker of one device: claims its jobs one after the other and runs each in a child forked from a warm server.

The fork server has imported torch, so a job starts in a few hundredths of a second; the worker itself never touches CUDA. Who dies
is noticed at once: a child by its exit code, a worker by its file lock; the next worker stops and requeues the orphan. The worker
outlives what passes by itself: a full disk, a locked database, a fork server that the system has killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

import store.jobs as jobs
from core.jobs import child
from core.jobs.health import Pulse, kill
from core.operations.context import append_log
from core.settings import Settings
from store import JobRow, Store, StoreError, open_store

PRELOAD = ("core.operations.preload",)
POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
PASSING = ("busy", "disk_full")
"""Codes of store errors that pass by themselves."""

_log = logging.getLogger("offshoot.worker")


class Stop:
    """Set by a signal. A plain flag: an Event's lock may be held at the very moment that its handler runs."""

    asked = False

    def ask(self, *_signal: object) -> None:
        self.asked = True


def main() -> None:
    """`python -c "from core.jobs.worker import main; main()" SETTINGS_JSON DEVICE` (no `__main__` file to import again)."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    settings, device = Settings.model_validate_json(sys.argv[1]), sys.argv[2]
    try:
        serve(settings, device)
    except StoreError as error:
        _log.error("%s", error.message)
        sys.exit(2)


def serve(settings: Settings, device: str, *, preload: Sequence[str] = PRELOAD) -> None:
    """Works until SIGTERM or SIGINT, or until it has had no job for `worker_idle_s`.

    `preload` names the modules that every child finds imported.

    Raises StoreError: worker_exists for a second one, and what opening a store raises.
    """
    store = open_store(settings.home)
    stop = Stop()
    try:
        first = True
        while not stop.asked and (first or jobs.list_jobs(store, ("queued",), 1, device=device)):
            # The look at the queue comes after the lock is free: a job submitted before that saw a worker, and gets one.
            try:
                lock = jobs.lock_worker(store, device)
            except StoreError:
                if first:
                    raise
                break  # another worker has come meanwhile
            with lock:
                if first:
                    for number in (signal.SIGTERM, signal.SIGINT):
                        signal.signal(number, stop.ask)
                first = False
                _serve(store, settings, device, stop, preload)
    finally:
        store.close()


def _serve(store: Store, settings: Settings, device: str, stop: Stop, preload: Sequence[str]) -> None:
    jobs.register_worker(store, device, os.getpid(), psutil.Process().create_time())
    for orphan in jobs.orphans(store, device):
        kill(orphan)
    jobs.requeue_orphans(store, device)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    _warm(context)
    idle_since = time.monotonic()
    while not stop.asked and time.monotonic() - idle_since < settings.worker_idle_s:
        job = _insist(lambda: jobs.claim(store, device, str(os.getpid())), stop)
        if job is None:
            time.sleep(POLL_SECONDS)
            continue
        _log.info("%s %s", job.operation, job.id)
        _run_child(store, settings, context, job, stop)
        idle_since = time.monotonic()


def _insist(call: Callable[[], Any], stop: Stop) -> Any:
    """The call's result, tried again while the store cannot be written; its error where the worker must stop meanwhile."""
    while True:
        try:
            return call()
        except StoreError as error:
            if error.code not in PASSING or stop.asked:
                raise
            _log.warning("%s Trying again.", error.message)
            time.sleep(RETRY_SECONDS)


def _warm(context: Any) -> None:
    """Starts the fork server now, so that its imports are done before the first job."""
    process = context.Process(target=_nothing)
    process.start()
    process.join()


def _nothing() -> None:
    """What the warming child does."""


def _run_child(store: Store, settings: Settings, context: Any, job: JobRow, stop: Stop) -> None:
    process = context.Process(target=child.main, args=(settings.model_dump_json(), job.id), name=f"offshoot-{job.id}")
    try:
        process.start()
    except (OSError, EOFError) as error:
        message = f"The job's process could not be started: {error}"
        _insist(lambda: _fail(store, job, "crashed", message, None), stop)
        return
    pulse = Pulse(settings.heartbeat_timeout_s, settings.cancel_release_s)
    while process.is_alive():
        process.join(POLL_SECONDS)
        if stop.asked:
            process.terminate()
            process.join(10)
            process.kill()
            process.join()
            _put_back(store, job)
            return
        if pulse.is_over(_insist(lambda: jobs.get_job(store, job.id), stop)):
            process.kill()
    _insist(lambda: _tell_death(store, job, process.exitcode, pulse.is_hung), stop)


def _put_back(store: Store, job: JobRow) -> None:
    """A worker that was asked to stop leaves its job queued, and does not count that as one of the worker's deaths."""
    row = jobs.get_job(store, job.id)
    if row.state in ("starting", "running") and row.attempt == job.attempt:
        jobs.request(store, row, "pause")
        jobs.requeue_orphans(store, job.device)
        jobs.resume(store, row)
        if row.pause_step is not None:
            jobs.run_until(store, row, row.pause_step)
    else:
        jobs.requeue_orphans(store, job.device)


def _tell_death(store: Store, job: JobRow, exitcode: int | None, hung: bool) -> None:
    """A child that ended without ending its job has crashed: the job fails with the signal or the exit code.

    One that was paused has nothing to lose: the job stays paused, off the device.
    """
    row = jobs.get_job(store, job.id)
    if row.state == "paused" and row.pid is not None and row.attempt == job.attempt:
        # It died while it stood still: its checkpoint is whole, and a resume must not wait for it. Refused where one came meanwhile.
        kill(row)
        if jobs.release(store, row):
            append_log(store.job_folder(job.id), "warning", f"The paused process ended with exit code {exitcode}.")
            return
        row = jobs.get_job(store, job.id)
    if row.state not in jobs.ON_DEVICE or row.attempt != job.attempt:
        return
    kill(row)  # where the fork server died, the child may have outlived it
    if row.state == "cancelling":
        jobs.cancelled(store, job, attempt=job.attempt)
        return
    if hung:
        _fail(store, job, "hung", "The job gave no sign of life and was stopped.", None)
        return
    cause, hint = f"exit code {exitcode}", ""
    if exitcode is not None and exitcode < 0:
        cause = f"signal {signal.Signals(-exitcode).name}"
        hint = " The system does this when memory runs out." if -exitcode == signal.SIGKILL else ""
    _fail(store, job, "crashed", f"The job's process ended with {cause}.{hint}", exitcode)


def _fail(store: Store, job: JobRow, code: str, message: str, given: Any) -> None:
    error = {
        "code": code,
        "message": message,
        "given": given,
        "legal": None,
        "next": "Resume the job: it goes on from its last checkpoint.",
    }
    folder = store.job_folder(job.id)
    jobs.fail(store, job, error, child.crash_report(folder), attempt=job.attempt)
    append_log(folder, "error", message)
