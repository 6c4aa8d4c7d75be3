"""Benchmark: latency, throughput and memory of several models, interleaved in one measurement, so that their ratios hold."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from core.errors import CoreError
from core.operations.context import Context, Outcome
from core.operations.models import load
from core.specs import BenchmarkSpec, ProfileSpec
from dcaecore import DCAE
from store import baseline_of, resolve_model

PROTOCOL_VERSION = 1


def run(spec: BenchmarkSpec, context: Context) -> Outcome:
    """Each repeat runs every model once, in turn, so that a machine that slows down slows all of them.

    Raises CoreError and StoreError for models that are not there, ConfigError for an image size that a model cannot take.
    """
    if context.job.parent_model_id is None:
        raise CoreError("A benchmark needs a model.", code="no_parent")
    ids = [context.job.parent_model_id, *(resolve_model(context.store, ref) for ref in spec.models)]
    if spec.with_baseline:
        ids += [baseline_of(context.store, ref).id for ref in list(ids)]
    ids = list(dict.fromkeys(ids))
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    models = {ref: load(context.store, ref).model.to(context.device, dtype).eval() for ref in ids}
    for model in models.values():
        model.config.check_image_size(spec.image_size, spec.image_size)
    x = torch.rand(spec.batch_size, 3, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))
    x = (x * 2 - 1).to(context.device, dtype)
    times = measure(models, x, spec.repeats, spec.warmup, context)
    rows = [{"model_id": ref, **figures(times[ref], spec.batch_size), **memory(models[ref], x)} for ref in ids]
    measurement = {
        **conditions(spec, context.device),
        "repeats": spec.repeats,
        "warmup": spec.warmup,
        "version": PROTOCOL_VERSION,
        "models": rows,
    }
    for row in rows:
        context.log("info", f"{row['model_id']}: decode {row['decode_ms']:.2f} ms, encode {row['encode_ms']:.2f} ms")
    return Outcome(measurements=[measurement], result={"models": ids})


@torch.inference_mode()
def measure(
    models: dict[str, DCAE], x: Tensor, repeats: int, warmup: int, context: Context | None = None
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each repeat's `encode` and `decode`, by model; synchronised, after `warmup` untimed runs of each.

    Every repeat begins with another model, so that none always follows the same neighbour (caches, clocks).
    """
    latents = {ref: model.encode(x) for ref, model in models.items()}
    order = list(models)
    times: dict[str, dict[str, list[float]]] = {ref: {"encode": [], "decode": []} for ref in models}
    for repeat in range(-warmup, repeats):
        turn = repeat % len(order)
        for ref in order[turn:] + order[:turn]:
            model = models[ref]
            encode = seconds(lambda m=model: m.encode(x), x.device)  # type: ignore[misc]
            decode = seconds(lambda m=model, z=latents[ref]: m.decode(z), x.device)  # type: ignore[misc]
            if repeat >= 0:
                times[ref]["encode"].append(encode)
                times[ref]["decode"].append(decode)
        if context is not None:
            context.check()
            context.progress((repeat + warmup + 1) / (repeats + warmup), f"repeat {max(0, repeat + 1)} of {repeats}")
    return times


def seconds(call: Callable[[], Any], device: torch.device | str, times: int = 1) -> float:
    """Seconds of one of `times` calls in a row, synchronised."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    if cuda:
        torch.cuda.synchronize(device)
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


def figures(times: dict[str, list[float]], batch_size: int) -> dict[str, float]:
    """Median, p95, p99 and spread of a batch in ms, and images a second."""
    found: dict[str, float] = {}
    both = [a + b for a, b in zip(times["encode"], times["decode"], strict=True)]
    for name, values in (("encode", times["encode"]), ("decode", times["decode"]), ("both", both)):
        ms = np.array(values) * 1e3
        found[f"{name}_ms"] = float(np.median(ms))
        found[f"{name}_p95_ms"] = float(np.percentile(ms, 95))
        found[f"{name}_p99_ms"] = float(np.percentile(ms, 99))
        found[f"{name}_spread_ratio"] = float((np.percentile(ms, 75) - np.percentile(ms, 25)) / np.median(ms))
        found[f"{name}_images_per_s"] = float(batch_size / np.median(values))
    return found


@torch.inference_mode()
def memory(model: DCAE, x: Tensor) -> dict[str, float]:
    """Peak bytes of a forward pass: on CUDA the allocator's, less what the other models hold; elsewhere the whole process's."""
    if x.device.type != "cuda":
        reset = _reset_peak_rss()
        model(x)
        return {"process_memory_bytes": float(_peak_rss() if reset else psutil.Process().memory_info().rss)}
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    torch.cuda.synchronize(x.device)
    held = torch.cuda.memory_allocated(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    model(x)
    torch.cuda.synchronize(x.device)
    return {
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated(x.device) - held + weights),
        "reserved_memory_bytes": float(torch.cuda.max_memory_reserved(x.device)),
    }


def _reset_peak_rss() -> bool:
    """Linux: lets the process's peak start anew (proc(5), clear_refs); False where that cannot be had."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss() -> int:
    """Bytes of the process's peak since the reset."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]


def device_name(device: str) -> str:
    """What the device calls itself."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
