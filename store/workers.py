"""One worker a device: a file lock that dies with its process, and a row that says who it is."""

from __future__ import annotations

import fcntl
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from store.blobs import disk_error
from store.db import Store, execute
from store.errors import StoreError
from store.identity import now


@dataclass(frozen=True)
class WorkerRow:
    """The last worker of a device: pid, its process's start time (seconds since 1970), when it registered."""

    device: str
    pid: int
    started: float
    registered: str


class WorkerLock:
    """The held lock of a device. Keep it as long as the worker lives; the system frees it when the process dies."""

    def __init__(self, path: Path, handle: IO[str]) -> None:
        self.path = path
        self._handle = handle

    def close(self) -> None:
        self._handle.close()

    def __enter__(self) -> WorkerLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def lock_path(store: Store, device: str) -> Path:
    """`worker-<device>.lock` in the store's folder."""
    return store.root / f"worker-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.lock"


def lock_worker(store: Store, device: str) -> WorkerLock:
    """Become the worker of a device. Raises StoreError(worker_exists) when another process is."""
    path = lock_path(store, device)
    try:
        handle = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise disk_error(error, path) or error from error
    # A child must not inherit the lock, or a dead worker's child would keep the device.
    os.set_inheritable(handle.fileno(), False)
    # `worker_alive` holds the lock for an instant: a few tries tell it from a worker.
    for _ in range(10):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.02)
    else:
        handle.close()
        known = get_worker(store, device)
        raise StoreError(
            f"Another worker already serves {device}" + (f" (process {known.pid})." if known else "."),
            code="worker_exists",
            given=device,
            legal="one worker a device",
            next="Let it work: it takes this store's jobs one after the other. Or stop it first.",
        )
    return WorkerLock(path, handle)


def worker_alive(store: Store, device: str) -> bool:
    """Whether a process holds the device's lock now."""
    try:
        with open(lock_path(store, device)) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def register_worker(store: Store, device: str, pid: int, started: float) -> WorkerRow:
    """Say who holds the device's lock."""
    moment = now()
    with store.write() as session:
        execute(
            session,
            "INSERT INTO worker (device, pid, started, registered) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (device) DO UPDATE SET pid=excluded.pid, started=excluded.started,"
            " registered=excluded.registered",
            (device, pid, started, moment),
        )
    return WorkerRow(device, pid, started, moment)


def get_worker(store: Store, device: str) -> WorkerRow | None:
    """The last worker that registered for a device, alive or not."""
    found = store.rows("SELECT device, pid, started, registered FROM worker WHERE device=?", (device,))
    return WorkerRow(*found[0]) if found else None
