"""A job in several processes: its child becomes `torchrun`, which starts one process a device and ends them all when one dies.

Rank 0 is the job as any other: it opens the store, is steered and ends the job. The others know nothing of the store.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

import psutil

import store.jobs as jobs
from core.settings import Settings
from dcaecore.errors import DcaeError
from store import open_store

MODULE = "core.jobs.ranks"
_PR_SET_PDEATHSIG = 1


def torchrun_command(processes: int, settings_json: str, job_id: str, device: str) -> list[str]:
    """What starts the ranks of a job on this machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*start, "--module", MODULE, settings_json, job_id, device]


def become_torchrun(settings_json: str, job_id: str) -> None:
    """Replaces this process by torchrun where the job asks for several; returns where it does not."""
    settings = Settings.model_validate_json(settings_json)
    store = open_store(settings.home)
    job = jobs.get_job(store, job_id)
    store.close()
    processes = int(job.spec.get("processes", 1))
    if processes > 1:
        command = torchrun_command(processes, settings_json, job_id, job.device)
        os.execve(command[0], command, {**os.environ, "OMP_NUM_THREADS": str(_threads(settings, processes))})


def _threads(settings: Settings, processes: int) -> int:
    return max(1, (settings.num_threads or psutil.cpu_count() or 1) // processes)


def main() -> None:
    """One rank, as torchrun starts it: `SETTINGS_JSON JOB_ID DEVICE`."""
    if sys.platform == "linux":  # torchrun itself may be killed, which it cannot pass on
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    settings, job_id, device = Settings.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3]
    settings = settings.model_copy(update={"num_threads": _threads(settings, int(os.environ["WORLD_SIZE"]))})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(settings.num_threads)
    torch.set_flush_denormal(True)
    if int(os.environ["RANK"]) > 0:
        from core.operations.ranks import assist

        with suppress(
            DcaeError
        ):  # every rank has raised it, and rank 0 tells: ending as failed would have torchrun end that one first
            assist(settings, device)
        return
    from core.jobs.child import run_job

    run_job(settings.model_dump_json(), job_id)
    store = open_store(settings.home)
    state = jobs.get_job(store, job_id).state
    store.close()
    if state == "failed":
        sys.exit(1)  # the others may be waiting for this rank: torchrun ends them


if __name__ == "__main__":
    main()
