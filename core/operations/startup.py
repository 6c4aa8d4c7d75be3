"""Start-up and peak memory of a model, each time in a fresh process that holds nothing else.

The process comes from a fork server that has imported torch and run nothing: no threads, no kernels chosen, no library handles. Its clock
runs from opening the file (in the system's cache, as it was just read) to the end of the first encode and decode. CUDA's context is made
before the clock starts: it takes as long for every model.

Peak memory on CUDA is the allocator's own, of this model alone. On the CPU it is by how much the process's resident memory grew at most,
the pages of torch that were needed for the first time included: they are the same for every model.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from core.operations.clock import synchronise
from core.operations.context import Context
from core.specs import BenchmarkSpec
from dcaecore import ConfigError, load_model, two_four

PRELOAD = ["core.operations.startup"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TIMES = ("load_ms", "first_run_ms", "start_ms")


def images(batch_size: int, image_size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random images, `(B, 3, H, W)` in [-1, 1]; latency does not depend on what is on them."""
    x = torch.rand(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return (x * 2 - 1).to(device, dtype)


def start(path: Path, spec: BenchmarkSpec, device: str, context: Context | None = None) -> dict[str, Any]:
    """Figures of one start in a process of its own, or `{"not_measured": why}`."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=_start, args=(sender, str(path), spec, device, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        while not receiver.poll(0.05):
            if context is not None:
                context.check()
        return dict(receiver.recv())
    except EOFError:
        process.join()
        return {"not_measured": f"the process that started the model ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        receiver.close()


def _start(sender: Connection, path: str, spec: BenchmarkSpec, device: str, threads: int) -> None:
    """What the fresh process does."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        sender.send(_timed(Path(path), spec, device))
    except (RuntimeError, MemoryError, ConfigError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        sender.send({"not_measured": f"it did not start: {first}"})


@torch.inference_mode()
def _timed(path: Path, spec: BenchmarkSpec, device: str) -> dict[str, Any]:
    cuda, dtype = device.startswith("cuda"), DTYPES[spec.dtype]
    x = images(spec.batch_size, spec.image_size, dtype, device)
    synchronise(device)
    held = torch.cuda.memory_allocated(device) if cuda else psutil.Process().memory_info().rss
    can_tell = cuda or reset_peak()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    model = load_model(path, device=device).model.to(device, dtype).eval()
    if spec.sparse_kernels:
        two_four.pack(model)
    synchronise(device)
    loaded = time.perf_counter()
    model.decode(model.encode(x))
    synchronise(device)
    ended = time.perf_counter()
    found: dict[str, Any] = {
        "load_ms": (loaded - begun) * 1e3,
        "first_run_ms": (ended - loaded) * 1e3,
        "start_ms": (ended - begun) * 1e3,
    }
    if cuda:
        found["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(device) - held)
        found["reserved_memory_bytes"] = float(torch.cuda.max_memory_reserved(device))
    elif can_tell and device == "cpu":
        found["peak_resident_bytes"] = float(peak_resident() - held)
    return found


def summary(starts: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, str]]:
    """Medians of the times and the largest memory over starts; and why a figure is missing, by its key."""
    failed = next((one["not_measured"] for one in starts if "not_measured" in one), None)
    if failed is not None:
        return {}, {"start_ms": failed}
    found = {key: float(median(one[key] for one in starts)) for key in TIMES}
    for key in ("peak_memory_bytes", "reserved_memory_bytes", "peak_resident_bytes"):
        if key in starts[0]:
            found[key] = max(float(one[key]) for one in starts)
    if "peak_memory_bytes" in found or "peak_resident_bytes" in found:
        return found, {}
    return found, {"peak_resident_bytes": "this system does not tell how much memory a process had at most since a moment"}


def reset_peak() -> bool:
    """Linux: lets the process's peak start anew (proc(5), clear_refs); False where that cannot be had."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_resident() -> int:
    """Bytes of the process's peak since the reset."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]
