"""Devices and how busy they are, without torch: NVML for NVIDIA GPUs (respecting CUDA_VISIBLE_DEVICES), psutil for the CPU."""

from __future__ import annotations

import os
import platform
import warnings
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Device:
    """One device as jobs name it, with its load now."""

    name: str
    title: str
    used_bytes: int
    total_bytes: int
    busy_ratio: float
    """0 to 1."""


def devices() -> list[Device]:
    """The GPUs that CUDA would see, then the CPU."""
    memory = psutil.virtual_memory()
    title = f"CPU, {psutil.cpu_count() or 1} cores ({platform.machine()})"
    cpu = Device("cpu", title, memory.total - memory.available, memory.total, psutil.cpu_percent() / 100)
    return [*_gpus(), cpu]


def default_device(setting: str = "auto") -> str:
    """The device of new jobs: the setting, or with `auto` the first that `devices` finds."""
    return devices()[0].name if setting == "auto" else setting


def _gpus() -> list[Device]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pynvml
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = pynvml.nvmlDeviceGetCount()
    wanted = range(count) if visible is None else [int(i) for i in visible.split(",") if i.strip().isdigit()]
    found = []
    for place, index in enumerate(i for i in wanted if i < count):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name = pynvml.nvmlDeviceGetName(handle)
        busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        found.append(Device(f"cuda:{place}", str(name), int(memory.used), int(memory.total), busy))
    return found
