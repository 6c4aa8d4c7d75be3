"""Devices and how busy they are, without torch: NVML for NVIDIA GPUs, psutil for the CPU.

A GPU is offered under the number that CUDA would give it (`CUDA_VISIBLE_DEVICES` may hide, reorder or name by UUID), and only
where the installed torch can use one. What a driver cannot tell (load of a MIG slice, memory of a shared-memory board) is 0.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

SPARSE_CAPABILITY = (8, 0)
"""CUDA compute capability from which on tensor cores take 2:4 weights (Ampere)."""


@dataclass(frozen=True)
class Device:
    """One device as jobs name it, with its load now."""

    name: str
    title: str
    used_bytes: int
    total_bytes: int
    busy_ratio: float
    """0 to 1."""

    @property
    def free_bytes(self) -> int:
        return max(0, self.total_bytes - self.used_bytes)


def devices() -> list[Device]:
    """The GPUs that CUDA would see, then the CPU."""
    memory = psutil.virtual_memory()
    title = f"CPU, {psutil.cpu_count() or 1} cores ({platform.machine()})"
    cpu = Device("cpu", title, memory.total - memory.available, memory.total, psutil.cpu_percent() / 100)
    return [*_usable_gpus(), cpu]


def default_device(setting: str = "auto") -> str:
    """The device of new jobs: the setting, or with `auto` the first that `devices` finds."""
    if setting != "auto":
        return setting
    # Not by `devices`: the CPU's load counts from the last look at it, and would be that of a moment.
    return next((gpu.name for gpu in _usable_gpus()), "cpu")


@lru_cache(maxsize=1)
def torch_uses_gpus() -> bool:
    """Whether the installed torch was built for GPUs, by its version (2.13.0+cpu was not); torch is not imported."""
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


@lru_cache(maxsize=1)
def _nvml() -> Any:
    """The initialised pynvml module, or None without a driver. Kept: looking for the library anew costs each refresh."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package renames itself from time to time, and says so
        import pynvml
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def visible_places(setting: str | None, uuids: list[str]) -> list[int]:
    """NVML indices in the order that CUDA numbers them, by the rules of `CUDA_VISIBLE_DEVICES`.

    Entries are indices or (prefixes of) UUIDs; the first entry that names no GPU ends the list, and one named twice hides all
    (CUDA C++ programming guide, "CUDA Environment Variables").
    """
    if setting is None:
        return list(range(len(uuids)))
    places: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            places.append(int(entry))
            continue
        named = [place for place, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
        if len(named) != 1:
            break
        places += named
    return places if len(set(places)) == len(places) else []


def gpu_handle(name: str) -> tuple[Any, Any] | None:
    """NVML and its handle of a GPU as jobs name it (`cuda:0`; `cuda` is the first); None without a driver, or such a GPU."""
    nvml = _nvml() if name.startswith("cuda") else None
    handles = [] if nvml is None else _handles(nvml)
    number = int(name.partition(":")[2] or 0)
    return (nvml, handles[number]) if number < len(handles) else None


def why_no_sparse_kernels(name: str) -> str | None:
    """Why a device cannot multiply 2:4 weights faster than dense ones; None where it can, or where its driver does not tell."""
    known = gpu_handle(name)
    if known is None:
        return f"{name} is no NVIDIA GPU"
    nvml, handle = known
    found = _told(nvml, lambda: tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)), None)
    return None if found is None or found >= SPARSE_CAPABILITY else f"{name} has compute capability {found[0]}.{found[1]}"


def gpu_figures(device: str) -> dict[str, float]:
    """Load (0 to 1), memory, temperature and power of a GPU, of what its driver can tell; nothing of the CPU."""
    known = gpu_handle(device)
    if known is None:
        return {}
    nvml, handle = known
    asked: dict[str, Callable[[], float]] = {
        "gpu_busy_ratio": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "gpu_memory_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
        "gpu_temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "gpu_power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    found = {name: _told(nvml, ask, None) for name, ask in asked.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _told(nvml: Any, ask: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return ask()
    except nvml.NVMLError:  # not supported by this board
        return otherwise


def _handles(nvml: Any) -> list[Any]:
    """NVML's handles in the order in which CUDA numbers the GPUs; empty where the driver is lost."""
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except nvml.NVMLError:
        return []
    return [handles[place] for place in visible_places(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)]


def _usable_gpus() -> list[Device]:
    return _gpus(_nvml()) if torch_uses_gpus() else []


def _gpus(nvml: Any) -> list[Device]:
    found = []
    for number, handle in enumerate([] if nvml is None else _handles(nvml)):
        memory = _told(nvml, lambda h=handle: nvml.nvmlDeviceGetMemoryInfo(h), None)  # type: ignore[misc]
        busy = _told(nvml, lambda h=handle: nvml.nvmlDeviceGetUtilizationRates(h).gpu / 100, 0.0)  # type: ignore[misc]
        title = str(_told(nvml, lambda h=handle: nvml.nvmlDeviceGetName(h), "NVIDIA GPU"))  # type: ignore[misc]
        used, total = (int(memory.used), int(memory.total)) if memory is not None else (0, 0)
        found.append(Device(f"cuda:{number}", title, used, total, float(busy)))
    return found
