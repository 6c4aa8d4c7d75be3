"""Calibration: what flows through each site on real images, and how strongly the loss pulls on each weight.

A site's *features* are the channels that its folding layer reads (the input of a ResBlock's second convolution, of a GLU's point
convolution, of an attention's projection): everything that its units give to the rest of the network. Their Gram matrix, over all
pixels of all calibration images, is all that activation-aware scores and the least-squares fold need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import CoreError
from core.pruning.units import feature_units, folding_layer
from dcaecore import DCAE, BatchStream, Layout, ReconstructionLoss, sites
from dcaecore.config import DCAEConfig

LEAST_IMAGES = 32


class _Reached(Exception):
    """Ends a forward pass once the features that were waited for are there."""


@dataclass(frozen=True)
class CalibrationImages:
    """Images with the weight of each pixel.

    `images` and `weights` hold batches: float32 `(B, 3, S, S)` in [-1, 1] and float32 `(B, 1, S, S)`, the weight being
    `foreground_weight` where something moves and 1 elsewhere.
    """

    images: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    foregrounds: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        return sum(len(batch) for batch in self.images)


def draw(stream: BatchStream, num_images: int, foreground_weight: float) -> CalibrationImages:
    """The first `num_images` of a stream's order, in batches of the stream's size."""
    batches = [stream.batch(step) for step in range(-(-num_images // stream.batch_size))]
    weights = [1.0 + (foreground_weight - 1.0) * batch.foreground_B1HW.float() for batch in batches]
    return CalibrationImages(
        tuple(batch.images_BCHW for batch in batches),
        tuple(weights),
        tuple(batch.foreground_B1HW for batch in batches),
    )


def pixel_weights(weights_B1HW: Tensor, features_BCHW: Tensor) -> Tensor:
    """The weight of each pixel of a feature map, `(B * h * w, 1)` float64: the mean over the image pixels that it covers."""
    height, width = features_BCHW.shape[-2:]
    small = F.adaptive_avg_pool2d(weights_B1HW.to(features_BCHW.device), (height, width))
    return small.permute(0, 2, 3, 1).reshape(-1, 1).double()


def rows(features_BCHW: Tensor) -> Tensor:
    """`(B * h * w, C)` float64."""
    return features_BCHW.detach().permute(0, 2, 3, 1).reshape(-1, features_BCHW.shape[1]).double()


@contextmanager
def _hooked(model: nn.Module, names: Sequence[str], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    modules = dict(model.named_modules())

    def hook(name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        take(name, inputs[0])

    handles = [modules[name].register_forward_pre_hook(partial(hook, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def features_of(model: DCAE, layer: str, batch: Tensor) -> Tensor:
    """What one layer reads on a batch of images, or of latents where it is the decoder's; the forward pass ends there."""
    found: list[Tensor] = []

    def take(_name: str, value: Tensor) -> None:
        found.append(value)
        raise _Reached

    with _hooked(model, [layer], take):
        try:
            (model.decode if layer.startswith("decoder.") else model.encode)(batch)
        except _Reached:
            pass
    return found[0]


@dataclass(frozen=True)
class SiteStatistics:
    """Second moments of a site's features: `gram[i, j]` is the weighted mean of f_i f_j over `pixels` pixels."""

    gram: np.ndarray
    pixels: int


@torch.no_grad()
def statistics(model: DCAE, images: CalibrationImages, names: Sequence[str]) -> dict[str, SiteStatistics]:
    """The statistics of the named sites in one pass over the images."""
    known = sites(model.config)
    layers = {folding_layer(known[name]): name for name in names}
    grams: dict[str, Tensor] = {}
    totals: dict[str, float] = dict.fromkeys(names, 0.0)
    pixels: dict[str, int] = dict.fromkeys(names, 0)
    device = next(model.parameters()).device
    for batch, weights in zip(images.images, images.weights, strict=True):

        def take(layer: str, value: Tensor, weights: Tensor = weights) -> None:
            name = layers[layer]
            x, w = rows(value), pixel_weights(weights, value)
            gram = x.T @ (x * w)
            grams[name] = gram if name not in grams else grams[name] + gram
            totals[name] += float(w.sum())
            pixels[name] += len(x)

        with _hooked(model, list(layers), take):
            model(batch.to(device))
    return {name: SiteStatistics((grams[name] / totals[name]).cpu().numpy(), pixels[name]) for name in names}


def images_needed(config: DCAEConfig, layout: Layout, kept: Mapping[str, int], image_size: int) -> tuple[int, str]:
    """Fewest images that show as many pixels at each site as a fit of so many kept units has unknowns there; and of which site."""
    needed, worst = 0, ""
    for name, units in kept.items():
        site = sites(config)[name]
        unknowns, pixels = units * feature_units(config, layout, site).per_unit, (image_size >> site.stage) ** 2
        images = -(-unknowns // pixels)
        if images > needed:
            needed, worst = images, f"{name} fits {unknowns} channels from {pixels} pixels an image"
    return needed, worst


def number_of_images(asked: int | None, needed: tuple[int, str]) -> int:
    """How many images to draw: what was asked for, else twice what is needed. Raises CoreError where too few were asked for."""
    least, worst = needed
    if asked is None:
        return max(LEAST_IMAGES, 2 * least)
    if asked < least:
        raise CoreError(
            f"{asked} calibration images are too few: {worst}.",
            code="calibration",
            given=asked,
            legal=f"at least {least} images",
            next="Raise calibration_images, leave it empty, or calibrate at a larger image size.",
        )
    return asked


def gradients(model: DCAE, images: CalibrationImages, *, foreground_weight: float) -> dict[str, Tensor]:
    """Mean gradient of the reconstruction loss (L1 + MSE) by parameter name, on the calibration images; the model is unchanged."""
    loss = ReconstructionLoss("l1+mse", foreground_weight=foreground_weight)
    parameters = dict(model.named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    device = next(model.parameters()).device
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    model.requires_grad_(True)
    try:
        for batch, moving in zip(images.images, images.foregrounds, strict=True):
            x = batch.to(device)
            value = loss(model(x), x, moving.to(device))[0]
            found = torch.autograd.grad(value, list(parameters.values()))
            for name, gradient in zip(parameters, found, strict=True):
                total[name] += gradient * (len(batch) / images.count)
    finally:
        for name in frozen:
            parameters[name].requires_grad_(False)
    return total
