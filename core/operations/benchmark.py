"""Benchmark: what several models cost, interleaved in one measurement, so that their ratios hold.

Latency and throughput of encode and decode; on request over batch and image sizes; energy where the GPU tells it; start-up and peak
memory in processes of their own; bytes. A figure that cannot be had is absent, with the reason, and never 0.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.checks import weights_path
from core.errors import CoreError
from core.operations.clock import conditions, seconds, synchronisation
from core.operations.context import Context, Outcome
from core.operations.energy import energy, meter
from core.operations.models import load
from core.operations.startup import DTYPES, images, start, summary
from core.operations.sweep import sweep
from core.specs import BenchmarkSpec
from dcaecore import DCAE, two_four
from store import baseline_of, get_model, resolve_model

PROTOCOL_VERSION = 3
"""1 measured memory in the process that held every model, and no start-up, energy or sweep; 2 in processes that gave freed memory back,
so that large models on a CPU were slower than they are (`core.jobs.allocator`)."""


def run(spec: BenchmarkSpec, context: Context) -> Outcome:
    """Each repeat runs every model once, in turn, so that a machine that slows down slows all of them.

    Raises CoreError and StoreError for models that are not there, ConfigError for an image size that a model cannot take.
    """
    if context.job.parent_model_id is None:
        raise CoreError("A benchmark needs a model.", code="no_parent")
    ids = [context.job.parent_model_id, *(resolve_model(context.store, ref) for ref in spec.models)]
    if spec.with_baseline:
        ids += [base for ref in list(ids) if (base := _baseline(ref, context)) is not None]
    ids = list(dict.fromkeys(ids))
    models = {ref: load(context.store, ref).model.to(context.device, DTYPES[spec.dtype]).eval() for ref in ids}
    for model in models.values():
        for size in spec.every_image_size:
            model.config.check_image_size(size, size)
    x = images(spec.batch_size, spec.image_size, DTYPES[spec.dtype], context.device)
    packed = _packed(models, context) if spec.sparse_kernels else {}
    times = measure(models, x, spec.repeats, spec.warmup, context)
    rows: dict[str, dict[str, Any]] = {
        ref: {**figures(times[ref], spec.batch_size), **loaded(models[ref]), **packed.get(ref, {})} for ref in ids
    }
    missing: dict[str, dict[str, str]] = {ref: {} for ref in ids}
    measured_by = meter(context.device)
    if isinstance(measured_by, str):
        for why in missing.values():
            why["energy_j_per_image"] = measured_by
    else:
        for ref, found in energy(models, x, measured_by, context).items():
            rows[ref] |= found
    if spec.sweep:
        for ref, points in sweep(models, spec, context, lambda some, at: _point(some, at, spec, context)).items():
            rows[ref]["sweep"] = points
    for ref, (found, why) in _starts(ids, spec, context).items():
        rows[ref] |= found
        missing[ref] |= why
    for ref in ids:
        if missing[ref]:
            rows[ref]["not_measured"] = missing[ref]
        context.log("info", f"{ref}: decode {rows[ref]['decode_ms']:.2f} ms, encode {rows[ref]['encode_ms']:.2f} ms")
    measurement = {
        **protocol(spec, context.device),
        **({} if isinstance(measured_by, str) else {"energy": measured_by.how}),
        "models": [{"model_id": ref, **rows[ref]} for ref in ids],
    }
    return Outcome(measurements=[measurement], result={"models": ids})


def _packed(models: dict[str, DCAE], context: Context) -> dict[str, dict[str, float]]:
    """Packs what sparse tensor cores take; the number of layers by model. Raises CoreError where no model has any."""
    names = {ref: two_four.pack(model) for ref, model in models.items()}
    if not any(names.values()):
        raise CoreError(
            "None of these models has a layer for sparse tensor cores.",
            code="nothing_sparse",
            legal=f"1x1 convolutions with 2:4 weights, outputs a multiple of {two_four.ROWS}, inputs of {two_four.COLUMNS}",
            next="Prune a model by two_four first, or leave sparse_kernels off.",
        )
    for ref, found in names.items():
        context.log("info", f"{ref}: {len(found)} convolutions run on 2:4 kernels.")
    return {ref: {"sparse_kernel_layers": float(len(found))} for ref, found in names.items()}


def _baseline(ref: str, context: Context) -> str | None:
    """The id of a model's baseline, where that can still run: a measurement beside nothing is better than none."""
    row = baseline_of(context.store, ref)
    if row.deleted is None and row.blob_digest is not None and context.store.blobs.exists(row.blob_digest):
        return row.id
    context.log("warning", f"{row.name}, the baseline of {ref}, is not in the store any more and is left out.")
    return None


def protocol(spec: BenchmarkSpec, device: str) -> dict[str, Any]:
    """All that the figures stand under."""
    return {
        **conditions(spec, device),
        "repeats": spec.repeats,
        "warmup": spec.warmup,
        "starts": spec.starts,
        "order": "models in turn, each repeat begins with another",
        "synchronisation": synchronisation(device),
        "version": PROTOCOL_VERSION,
        **({"sweep_repeats": spec.sweep_repeats} if spec.sweep else {}),
        **({"sparse_kernels": True} if spec.sparse_kernels else {}),
        # Both change float32's speed by half and more.
        **(
            {"tf32_convolutions": torch.backends.cudnn.allow_tf32, "cudnn_benchmark": torch.backends.cudnn.benchmark}
            if device.startswith("cuda")
            else {}
        ),
    }


@torch.inference_mode()
def measure(
    models: dict[str, DCAE], x: Tensor, repeats: int, warmup: int, context: Context | None = None, *, share: float = 0.5
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each repeat's `encode` and `decode`, by model; synchronised, after `warmup` untimed runs of each.

    Every repeat begins with another model, so that none always follows the same neighbour (caches, clocks). `share` is the part of the
    job that this is, told as its progress; 0 tells nothing.
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
            if share:
                done = (repeat + warmup + 1) / (repeats + warmup)
                context.progress(share * done, f"repeat {max(0, repeat + 1)} of {repeats}")
    return times


def _point(models: dict[str, DCAE], x: Tensor, spec: BenchmarkSpec, context: Context) -> dict[str, dict[str, float]]:
    """Figures of one point of a sweep."""
    times = measure(models, x, spec.sweep_repeats, 1, context, share=0.0)
    return {ref: figures(own, len(x)) for ref, own in times.items()}


def _starts(ids: list[str], spec: BenchmarkSpec, context: Context) -> dict[str, tuple[dict[str, float], dict[str, str]]]:
    """Start-up and peak memory by model; models take turns here too."""
    if not spec.starts:
        told = {"start_ms": "no start was asked for (starts is 0)", "peak_resident_bytes": "no start was asked for (starts is 0)"}
        return {ref: ({}, told) for ref in ids}
    starts: dict[str, list[dict[str, Any]]] = {ref: [] for ref in ids}
    for number in range(spec.starts):
        for ref in ids:
            context.check()
            context.progress(0.8 + 0.2 * number / spec.starts, f"start {number + 1} of {spec.starts}")
            path = weights_path(context.store, get_model(context.store, ref))
            starts[ref].append(start(path, spec, context.device, context))
    return {ref: summary(own) for ref, own in starts.items()}


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


def loaded(model: DCAE) -> dict[str, Any]:
    """Bytes of parameters and buffers as they lie in memory, together and by dtype; packed ones count as what is left of them."""
    by_dtype: Counter[str] = Counter()
    if packed := two_four.packed_bytes(model):
        by_dtype["packed 2:4"] = packed
    for tensor in (*model.parameters(), *model.buffers()):
        by_dtype[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
    return {"loaded_bytes": float(sum(by_dtype.values())), "loaded_bytes_by_dtype": {k: float(v) for k, v in by_dtype.items()}}
