"""A job in several processes: its child becomes `torchrun`, which starts one process a device and ends them all when one dies.

Rank 0 is the job as any other: it opens the store, is steered and ends the job. The others know nothing of the store, so they may as
well run on other machines (`python -m core assist`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

import psutil

import store.jobs as jobs
from core.machine import meeting_place
from core.settings import Settings
from dcaecore.errors import DcaeError
from store import open_store

MODULE = "core.jobs.ranks"
_PR_SET_PDEATHSIG = 1


def start_ranks(
    settings: Settings, device: str, *, job_id: str = "", processes: int, machines: int = 1, machine: int = 0
) -> None:
    """Replaces this process by the torchrun of this machine's share of the processes. Machine 0 is the job's own, and has rank 0.

    Raises CoreError where several machines have no place to meet.
    """
    own = processes // machines
    where = ["--standalone"]
    if machines > 1:
        host, port = meeting_place(settings.rendezvous)
        where = ["--nnodes", str(machines), "--node-rank", str(machine), "--master-addr", host, "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(own), "--module", MODULE]
    threads = {**os.environ, "OMP_NUM_THREADS": str(_threads(settings, own))}
    os.execve(command[0], [*command, settings.model_dump_json(), job_id, device], threads)


def become_torchrun(settings_json: str, job_id: str) -> None:
    """Replaces this process by torchrun where the job asks for several processes; returns where it does not."""
    settings = Settings.model_validate_json(settings_json)
    store = open_store(settings.home)
    job = jobs.get_job(store, job_id)
    store.close()
    processes, machines = (int(job.spec.get(name, 1)) for name in ("processes", "machines"))
    if processes > 1:
        start_ranks(settings, job.device, job_id=job_id, processes=processes, machines=machines)


def _threads(settings: Settings, processes: int) -> int:
    return max(1, (settings.num_threads or psutil.cpu_count() or 1) // processes)


def main() -> None:
    """One rank, as torchrun starts it: `SETTINGS_JSON JOB_ID DEVICE`."""
    if sys.platform == "linux":  # torchrun itself may be killed, which it cannot pass on
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    settings, job_id, device = Settings.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3]
    settings = settings.model_copy(update={"num_threads": _threads(settings, int(os.environ["LOCAL_WORLD_SIZE"]))})
    import torch

    from core.jobs.child import run_job, settle

    settle()
    torch.set_num_threads(settings.num_threads)
    if int(os.environ["RANK"]) > 0:
        from core.operations.ranks import assist

        with suppress(
            DcaeError
        ):  # every rank has raised it, and rank 0 tells: ending as failed would have torchrun end that one first
            assist(settings, device)
        return
    run_job(settings.model_dump_json(), job_id)
    store = open_store(settings.home)
    state = jobs.get_job(store, job_id).state
    store.close()
    if state == "failed":
        sys.exit(1)  # the others may be waiting for this rank: torchrun ends them


if __name__ == "__main__":
    main()
