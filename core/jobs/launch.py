"""Starting a device's worker, detached, if none is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import store.jobs as jobs
from core.settings import Settings
from store import Store

ROOT = Path(__file__).resolve().parents[2]
_STARTED: list[subprocess.Popen[bytes]] = []
"""Workers that this process started: kept, so that one that has ended is reaped and no zombie stays."""
_COMMAND = "from core.jobs.worker import main; main()"


def ensure_worker(store: Store, settings: Settings, device: str) -> bool:
    """Starts a worker for the device unless one holds its lock; True where one was started.

    It survives whoever starts it: own session, own log (`worker-<device>.log` in the store's folder). Two started at once are no
    harm: the second finds the lock taken and ends.
    """
    if jobs.worker_alive(store, device):
        return False
    absolute = settings.model_copy(update={"home": store.root.resolve(), "data_dir": settings.data_folder.resolve()})
    log = store.root / f"worker-{device.replace(':', '-')}.log"
    with log.open("ab") as output:
        _STARTED[:] = [process for process in _STARTED if process.poll() is None]
        started = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, absolute.model_dump_json(), device],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            close_fds=True,
        )
        _STARTED.append(started)
    return True
