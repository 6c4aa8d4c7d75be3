"""Energy of an image on an NVIDIA GPU, as its driver tells it; elsewhere the reason why there is no such figure.

The driver's counter (millijoules since it was loaded, Volta and newer) is read before and after; boards without one tell their power,
which is sampled and integrated. Both are of the whole board, whatever else runs on it, its idle draw included.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from core.devices import gpu_handle
from core.operations.clock import synchronise
from core.operations.context import Context
from dcaecore import DCAE

STRETCH_S = 1.0
"""The counter moves every 20 to 100 ms: a shorter stretch would be mostly rounding."""
ROUNDS = 2
SAMPLE_S = 0.02

WHY_NOT = {
    "cpu": "only NVIDIA GPUs tell their energy (NVML); this ran on the CPU",
    "mps": "only NVIDIA GPUs tell their energy (NVML); this ran on an Apple GPU",
}


class Counter:
    """Joules by the driver's own counter."""

    how = "NVML's energy counter"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._read = lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        self._read()  # a board without one says so now

    def of(self, work: Callable[[], None]) -> float:
        """Joules while `work` runs."""
        before = self._read()
        work()
        return self._read() - before


class Power:
    """Joules as the integral of the power that the driver tells, by trapezoids."""

    how = f"NVML's power, sampled every {SAMPLE_S * 1e3:.0f} ms and integrated"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._watts = lambda: float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1e3
        self._watts()

    def of(self, work: Callable[[], None]) -> float:
        """Joules while `work` runs."""
        samples = [(time.perf_counter(), self._watts())]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(SAMPLE_S):
                samples.append((time.perf_counter(), self._watts()))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            work()
        finally:
            done.set()
            thread.join()
        samples.append((time.perf_counter(), self._watts()))
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in zip(samples, samples[1:], strict=False))


def meter(device: str) -> Counter | Power | str:
    """What measures a device's energy, or why nothing does."""
    found = gpu_handle(device)
    if found is None:
        return WHY_NOT.get(torch.device(device).type, "no NVIDIA driver answers here (NVML)")
    nvml, handle = found
    kinds: tuple[type[Counter] | type[Power], ...] = (Counter, Power)
    for kind in kinds:
        try:
            return kind(nvml, handle)
        except nvml.NVMLError as error:
            reason = str(error)
    return f"this GPU's driver tells neither energy nor power: {reason}"


@torch.inference_mode()
def energy(models: Mapping[str, DCAE], x: Tensor, measured_by: Counter | Power, context: Context | None = None) -> dict[str, Any]:
    """By model: joules of an image's encode and decode, and the mean watts meanwhile. Stretches of each model take turns."""
    joules, images, spent = (dict.fromkeys(models, 0.0) for _ in range(3))
    for _ in range(ROUNDS):
        for ref, model in models.items():
            passes = 0

            def work(model: DCAE = model) -> None:
                nonlocal passes
                until = time.perf_counter() + STRETCH_S
                while time.perf_counter() < until:
                    model.decode(model.encode(x))
                    passes += 1
                    # Without a wait the queue would run ahead of the clock by seconds.
                    synchronise(x.device)

            started = time.perf_counter()
            joules[ref] += measured_by.of(work)
            spent[ref] += time.perf_counter() - started
            images[ref] += passes * len(x)
            if context is not None:
                context.check()
    return {ref: {"energy_j_per_image": joules[ref] / images[ref], "power_w": joules[ref] / spent[ref]} for ref in models}
