"""How time is taken on a device: what is waited for before a clock is read, and what a figure stands under."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.specs import BenchmarkSpec, ProfileSpec


def synchronise(device: torch.device | str) -> None:
    """Waits until a device has done all that it was given. CUDA and MPS run behind the program; the CPU does not."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def synchronisation(device: str) -> str:
    """How `synchronise` waits, in words for a protocol."""
    return {"cuda": "torch.cuda.synchronize", "mps": "torch.mps.synchronize"}.get(torch.device(device).type, "none needed")


def seconds(call: Callable[[], Any], device: torch.device | str, times: int = 1) -> float:
    """Seconds of one of `times` calls in a row, synchronised before and after."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / times


def conditions(spec: BenchmarkSpec | ProfileSpec, device: str) -> dict[str, Any]:
    """What a latency was measured on and with."""
    return {
        "device": device,
        "device_name": device_name(device),
        "dtype": spec.dtype,
        "image_size": spec.image_size,
        "batch_size": spec.batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def device_name(device: str) -> str:
    """What the device calls itself."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
