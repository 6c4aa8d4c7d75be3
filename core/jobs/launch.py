"""Starting a device's worker, detached, if none is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import store.jobs as jobs
from core.settings import Settings
from store import Store

ROOT = Path(__file__).resolve().parents[2]
_COMMAND = "from core.jobs.worker import main; main()"
_STARTED: dict[tuple[Path, str], subprocess.Popen[bytes]] = {}
"""Workers that this process started: kept, so that one that has ended is reaped and no zombie stays."""


def ensure_worker(store: Store, settings: Settings, device: str) -> bool:
    """Starts a worker for the device unless one holds its lock; True where one was started.

    It survives whoever starts it: own session, own log (`worker-<device>.log` in the store's folder). One that this process has
    just started takes a second until it holds the lock, and is not started again meanwhile; two that two processes start at once
    are no harm, since the second finds the lock taken and ends.
    """
    root = store.root.resolve()
    for key, started in list(_STARTED.items()):
        if started.poll() is not None:
            del _STARTED[key]
    if jobs.worker_alive(store, device) or _is_starting(store, _STARTED.get((root, device)), device):
        return False
    absolute = settings.model_copy(update={"home": root, "data_dir": settings.data_folder.resolve()})
    log = store.root / f"worker-{device.replace(':', '-')}.log"
    with log.open("ab") as output:
        _STARTED[(root, device)] = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, absolute.model_dump_json(), device],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            close_fds=True,
        )
    return True


def _is_starting(store: Store, process: subprocess.Popen[bytes] | None, device: str) -> bool:
    """A worker registers once it holds the lock; one that has, and holds it no longer, is on its way out."""
    if process is None:
        return False
    known = jobs.get_worker(store, device)
    return known is None or known.pid != process.pid
