"""What a training asks of the machine: a device for each process, a compiler where it is compiled. No torch."""

from __future__ import annotations

import psutil

from core.devices import devices
from core.errors import CoreError
from core.specs import RetrainSpec
from dcaecore.compiling import check_compiler


def check_machine(spec: RetrainSpec, device: str, rendezvous: str = "") -> None:
    """Raises CoreError or ConfigError where a training on `device` asks for what is not there."""
    check_processes(spec, device)
    if spec.machines > 1:
        meeting_place(rendezvous)
    if spec.compile_model:
        check_compiler(device)


def check_processes(spec: RetrainSpec, device: str) -> None:
    """Raises CoreError where a training on `device` asks for more devices than there are: GPUs from that one on, or CPU cores."""
    own = spec.processes // spec.machines
    if own == 1:
        return
    if device.startswith("cuda:"):
        first = int(device.removeprefix("cuda:"))
        have = sum(found.name.startswith("cuda:") and int(found.name[5:]) >= first for found in devices())
        what = f"GPUs from {device} on"
    else:
        have, what = psutil.cpu_count() or 1, "cores of the CPU"
    if own > have:
        raise CoreError(
            f"{own} processes need a device each, and there are {have} {what}.", code="devices", given=own,
            legal=f"1 to {have}", next="Ask for fewer; accumulation_steps trains with the same batch in less memory.",
        )  # fmt: skip


def meeting_place(rendezvous: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; raises CoreError for anything else."""
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CoreError(
            "Machines that train together need a place to meet.", code="rendezvous", given=rendezvous,
            legal="HOST:PORT of the job's own machine, as the others reach it: train1:29500",
            next="Set OFFSHOOT_RENDEZVOUS, or rendezvous in offshoot.toml, before the job's worker starts.",
        )  # fmt: skip
    return host.strip("[]"), int(port)
