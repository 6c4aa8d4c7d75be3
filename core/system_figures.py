"""What a job asks of its machine, a sample every few seconds: processor, memory and, where the driver tells, the GPU. No torch.

The figures are metrics of the job, beside its loss: durable, in archives, and mirrored with the rest. They stand at the steps of a
training; a job without steps counts its samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from core.devices import gpu_figures

PREFIX = "system/"
SAMPLE_SECONDS = 10.0


class SystemFigures:
    """Samples of the process that makes it, and of the device that it works on. The first is due at once."""

    def __init__(self, device: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.device, self.clock = device, clock
        self.count = 0
        self._process = psutil.Process()
        self._due_at = clock()
        # These tell what was used since they were last asked.
        self._process.cpu_percent()
        psutil.cpu_percent()

    def due(self, *, now: bool = False) -> dict[str, float]:
        """A sample where one is due (or wanted now), else nothing: shares from 0 to 1, cores in use, memory in GiB."""
        moment = self.clock()
        if moment < self._due_at and not now:
            return {}
        self._due_at = moment + SAMPLE_SECONDS
        self.count += 1
        memory = psutil.virtual_memory()
        figures = {
            "cpu_busy_ratio": psutil.cpu_percent() / 100,
            "process_cores": self._process.cpu_percent() / 100,
            "process_memory_gib": self._process.memory_info().rss / 2**30,
            "memory_used_ratio": 1 - memory.available / memory.total,
            **gpu_figures(self.device),
        }
        return {f"{PREFIX}{name}": value for name, value in figures.items()}
