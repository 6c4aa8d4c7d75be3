"""Throughput over batch sizes and image sizes: the same interleaved measurement at each point, with fewer repeats.

A point that a model has no memory for has no figure but the reason; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch

from core.operations.context import Context
from core.operations.startup import DTYPES, images
from core.specs import BenchmarkSpec
from dcaecore import DCAE, estimate

Measure = Callable[..., dict[str, dict[str, Any]]]
KEPT = tuple(f"{what}_{figure}" for what in ("encode", "decode", "both") for figure in ("ms", "images_per_s"))


def sweep(models: Mapping[str, DCAE], spec: BenchmarkSpec, context: Context, measured: Measure) -> dict[str, dict[str, Any]]:
    """By model: `{"128x4": {image_size, batch_size, encode_ms, encode_images_per_s, ...}}`, or `not_measured` with the reason.

    `measured(models, x)` takes the figures of one point.
    """
    found: dict[str, dict[str, Any]] = {ref: {} for ref in models}
    for place, (image_size, batch_size) in enumerate(spec.sweep):
        context.progress(0.5 + 0.3 * place / len(spec.sweep), f"{image_size} px, batch {batch_size}")
        point: dict[str, Any] = {"image_size": image_size, "batch_size": batch_size}
        x = images(batch_size, image_size, DTYPES[spec.dtype], context.device)
        reasons = {ref: _no_room(model, x) for ref, model in models.items()}
        fits = {ref: model for ref, model in models.items() if reasons[ref] is None}
        figures = measured(fits, x) if fits else {}
        for ref in models:
            own = {key: figures[ref][key] for key in KEPT} if ref in fits else {"not_measured": reasons[ref]}
            found[ref][f"{image_size}x{batch_size}"] = {**point, **own}
    return found


@torch.inference_mode()
def _no_room(model: DCAE, x: torch.Tensor) -> str | None:
    """Why a batch has no room, by arithmetic where the system would end the process, else by trying it; None where it has."""
    if x.device.type == "cpu":
        cost = estimate(model.config, model.layout, image_size=x.shape[-1])
        needed = max(row.saved for row in cost.modules) * len(x) * x.element_size()
        free = psutil.virtual_memory().available
        if needed > free:
            return f"one layer alone needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    try:
        model.decode(model.encode(x))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        return "the memory is not enough"
    return None
