"""Activations: what comes out of each layer of a model over pinned images, as ranges, moments, dead channels and histograms.

Two passes over the images: the first finds each layer's range, the second counts in equal steps of it. Nothing is kept of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from core.layers import BINS, Activation
from core.operations.context import Context, Outcome
from core.operations.evaluate import subject_of
from core.operations.images import open_parts
from core.specs import ActivationsSpec
from dcaecore import DCAE, PinnedImages, pin
from dcaecore.layer_stats import DEAD

VERSION = 1


class _Range:
    """First pass over one layer: sums, extremes, and the largest absolute value of each channel."""

    def __init__(self) -> None:
        self.least, self.largest, self.count = float("inf"), float("-inf"), 0
        self.total, self.squares, self.zeros = 0.0, 0.0, 0
        self.reach = torch.zeros(0)

    def take(self, output: Tensor) -> None:
        values = output.detach().float()
        self.least, self.largest = min(self.least, float(values.min())), max(self.largest, float(values.max()))
        self.count += values.numel()
        self.total += float(values.double().sum())
        self.squares += float(values.double().square().sum())
        self.zeros += int((values == 0).sum())
        own = values.abs().amax(dim=(0, 2, 3)).cpu()
        self.reach = own if len(self.reach) == 0 else torch.maximum(self.reach, own)


def run(spec: ActivationsSpec, context: Context) -> Outcome:
    """A table by layer, in the order of the calls. Raises CoreError without a model, ConfigError and DataError as an evaluation does."""
    subject = subject_of(context, spec.image_size)
    (part,) = open_parts(spec.data, spec.image_size, context, spec.part)
    pinned = pin(part.cache, part.rows, spec.num_images, skip_broken=spec.data.skip_broken)
    model = subject.model.eval()
    ranges: dict[str, _Range] = {}
    counts: dict[str, Tensor] = {}

    def measure(name: str, output: Tensor) -> None:
        ranges.setdefault(name, _Range()).take(output)

    def count(name: str, output: Tensor) -> None:
        found = ranges[name]
        # A constant output has no width: its one value stands in the middle of a step.
        width = max(found.largest - found.least, 1e-12)
        place = ((output.detach().float() - found.least) / width * BINS).long().clamp(0, BINS - 1)
        own = torch.bincount(place.reshape(-1), minlength=BINS).cpu()
        counts[name] = counts[name] + own if name in counts else own

    for number, take in enumerate((measure, count)):
        _pass(spec, context, model, pinned, take, number)
    layers = [_activation(name, found, counts[name]) for name, found in ranges.items()]
    protocol = {
        "version": VERSION, "images_sha256": pinned.digest, "num_images": len(pinned), "image_size": spec.image_size,
        "dtype": spec.dtype, "source": f"{spec.data.kind}:{spec.data.location}", "part": spec.part,
    }  # fmt: skip
    table = {"protocol": protocol, "layers": [asdict(layer) for layer in layers]}
    digest = context.store.blobs.put_bytes(json.dumps(table, sort_keys=True).encode())
    dead = sum(layer.dead for layer in layers)
    context.log(
        "info", f"{len(layers)} layers on {len(pinned)} images; {dead} of {sum(x.channels for x in layers)} channels dead."
    )
    return Outcome(result={"table_digest": digest, "num_layers": len(layers), "dead_channels": dead})


@torch.inference_mode()
def _pass(
    spec: ActivationsSpec, context: Context, model: DCAE, pinned: PinnedImages, take: Callable[[str, Tensor], None], number: int
) -> None:
    """Runs all images through the model; `take` sees the output of each convolution by name."""

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: take(name, output)

    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    handles = [module.register_forward_hook(hook(name)) for name, module in convolutions.items()]
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else None
    try:
        for start in range(0, len(pinned), spec.batch_size):
            context.check()
            context.progress((number + start / len(pinned)) / 2, f"pass {number + 1} of 2, image {start} of {len(pinned)}")
            x = pinned.tensor(start, start + spec.batch_size).to(context.device)
            with torch.autocast(torch.device(context.device).type, dtype=dtype, enabled=dtype is not None):
                model(x)
    finally:
        for handle in handles:
            handle.remove()


def _activation(name: str, found: _Range, counts: Tensor) -> Activation:
    mean = found.total / found.count
    spread = max(found.squares / found.count - mean**2, 0.0) ** 0.5
    return Activation(
        name, found.least, found.largest, mean, spread, found.zeros / found.count, len(found.reach),
        int((found.reach <= DEAD).sum()), tuple(int(count) for count in counts),
    )  # fmt: skip
