"""The worker of one device: claims its jobs one after the other and runs each in a child forked from a warm server.

The fork server has imported torch, so a job starts in a few hundredths of a second; the worker itself never touches CUDA. Who dies
is noticed at once: a child by its exit code, a worker by its file lock; the next worker stops and requeues the orphan.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from typing import Any

import psutil

import store.jobs as jobs
from core.settings import Settings
from store import JobRow, Store, open_store

POLL_SECONDS = 0.1


def main() -> None:
    """`python -c "from core.jobs.worker import main; main()" SETTINGS_JSON DEVICE` (no `__main__` file to import again)."""
    serve(Settings.model_validate_json(sys.argv[1]), sys.argv[2])


def serve(settings: Settings, device: str) -> None:
    """Works until SIGTERM or until it has had no job for `worker_idle_s`. Raises StoreError(worker_exists) for a second one."""
    store = open_store(settings.home)
    with jobs.lock_worker(store, device):
        jobs.register_worker(store, device, os.getpid(), psutil.Process().create_time())
        stop: list[bool] = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        _take_over(store, device)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["core.operations.preload"])
        idle_since = time.monotonic()
        _warm(context)
        while not stop and time.monotonic() - idle_since < settings.worker_idle_s:
            job = jobs.claim(store, device, str(os.getpid()))
            if job is None:
                time.sleep(POLL_SECONDS)
                continue
            _run_child(store, settings, context, job, stop)
            idle_since = time.monotonic()
    store.close()


def _warm(context: Any) -> None:
    """Starts the fork server now, so that its imports are done before the first job."""
    process = context.Process(target=_nothing)
    process.start()
    process.join()


def _nothing() -> None:
    """What the warming child does."""


def _run_child(store: Store, settings: Settings, context: Any, job: JobRow, stop: list[bool]) -> None:
    from core.jobs.child import run_job

    process = context.Process(target=run_job, args=(settings.model_dump_json(), job.id), name=f"offshoot-{job.id}")
    process.start()
    while process.is_alive():
        process.join(0.2)
        if stop:
            process.terminate()
            process.join(10)
            process.kill()
            jobs.requeue_orphans(store, job.device)
            return
        _stop_if_hung(store, settings, job, process)
    _tell_death(store, job, process.exitcode)


def _stop_if_hung(store: Store, settings: Settings, job: JobRow, process: Any) -> None:
    row = jobs.get_job(store, job.id)
    if row.heartbeat is not None and time.time() - row.heartbeat > settings.heartbeat_timeout_s:
        process.kill()


def _tell_death(store: Store, job: JobRow, exitcode: int | None) -> None:
    """A child that ended without ending its job has crashed: the job fails with the signal or the exit code."""
    row = jobs.get_job(store, job.id)
    if row.state not in jobs.ON_DEVICE or row.attempt != job.attempt:
        return
    if row.state == "cancelling":
        jobs.cancelled(store, job, attempt=job.attempt)
        return
    cause = f"exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        cause = f"signal {signal.Signals(-exitcode).name}"
    error = {
        "code": "crashed",
        "message": f"The job's process ended with {cause}.",
        "given": exitcode,
        "legal": None,
        "next": "Resume the job: it goes on from its last checkpoint.",
    }
    jobs.fail(store, job, error, None, attempt=job.attempt)


def _take_over(store: Store, device: str) -> None:
    """Stops what a dead worker left running (known by pid and start time), then requeues it."""
    for orphan in jobs.orphans(store, device):
        if orphan.pid is None:
            continue
        try:
            process = psutil.Process(orphan.pid)
            if orphan.pid_started is None or abs(process.create_time() - orphan.pid_started) < 1.0:
                process.kill()
                process.wait(10)
        except psutil.NoSuchProcess:
            continue
    jobs.requeue_orphans(store, device)
