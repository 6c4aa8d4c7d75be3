"""Compensation: what the kept channels can say of the removed ones, folded into the layer that reads them.

For each pruned site, in the order in which data flows, the features of the dense model are fitted from the kept features of the
model as pruned *so far*, by weighted least squares over the pixels of the calibration images, and the fit is folded into the next
layer: `W' = W A^T` with `A = (X'^T D X' + r I)^-1 (X'^T D X + r I_K)`. A linear combination of channels commutes with a
convolution, so this is exact for any kernel size; what earlier sites got wrong is corrected on the way. The ridge r pulls towards
plain pruning, so too few samples do no harm. There is no intercept: zero padding would break it. Parameter-free shortcuts have
nothing to fold into, and are left alone.

Reference: ThiNet (arXiv 1707.06342) and channel pruning (arXiv 1707.06168) refit the next layer by least squares; the sequential
correction is that of post-training quantisation (AdaRound, arXiv 2004.10568, asymmetric reconstruction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from core.pruning.calibration import CalibrationImages, features_of, pixel_weights, rows
from core.pruning.surgery import cut, zero
from core.pruning.units import feature_units, folding_layer
from dcaecore import DCAE, in_flow, sites

RIDGE = 1e-4
"""Of the mean diagonal of the Gram matrix."""

Keep = Mapping[str, Sequence[int]]


@torch.no_grad()
def compensate(
    dense: DCAE,
    keep: Keep,
    images: CalibrationImages,
    *,
    ridge: float = RIDGE,
    masks: Mapping[str, Tensor] | None = None,
    exact_norms: bool = True,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Tensor]:
    """Weights of the dense shape with the units that `keep` leaves out at zero and their part folded into the kept ones.

    Cutting the result by `keep` (with the same `exact_norms`) is what was fitted. Where a residual stream is cut, every internal
    site behind it is fitted anew, pruned or not: it has other inputs now. `masks` (True = kept) hold: a masked weight stays zero.
    `dense` is not changed.
    """
    config, layout = dense.config, dense.layout
    known = sites(config)
    streams = {name: units for name, units in keep.items() if known[name].kind == "stream"}
    internal = {name: units for name, units in keep.items() if name not in streams}
    flow = in_flow(config)
    thinned = [place for place, name in enumerate(flow) if name in streams and len(streams[name]) < layout.width(known[name])]
    behind = flow[min(thinned, default=len(flow)) :]
    internal = {n: range(layout.width(known[n])) for n in behind if known[n].kind != "stream"} | internal
    order = [n for n in flow if n in internal and (n in behind or len(internal[n]) < layout.width(known[n]))]
    was_training = dense.training
    dense.eval()
    source = zero(dense.state_dict(), config, layout, streams)
    state = zero(source, config, layout, internal)
    first = next(dense.parameters())
    pruned = DCAE(config, layout.compose(config, streams)).to(device=first.device, dtype=first.dtype).eval()
    latents: tuple[list[Tensor], list[Tensor]] | None = None
    for place, name in enumerate(order):
        layer = folding_layer(known[name])
        units = feature_units(config, layout, known[name]).of_unit
        kept = torch.from_numpy(units[list(internal[name])].reshape(-1)).sort().values
        weight = source[f"{layer}.weight"]
        pruned.load_state_dict(cut(state, config, layout, streams, exact_norms=exact_norms).state)
        batches = list(images.images), list(images.images)
        if layer.startswith("decoder."):  # the encoder is done: each image goes through it once
            if latents is None:
                latents = _latents(dense, images, first.device), _latents(pruned, images, first.device)
            batches = latents
        fit = _fit((dense, pruned), layer, kept, zip(*batches, images.weights, strict=True), ridge)
        state[f"{layer}.weight"] = _masked(_folded(weight, kept, fit), f"{layer}.weight", masks)
        if progress is not None:
            progress((place + 1) / len(order))
    dense.train(was_training)
    return state


def _latents(model: DCAE, images: CalibrationImages, device: torch.device) -> list[Tensor]:
    return [model.encode(batch.to(device)) for batch in images.images]


def _fit(
    models: tuple[DCAE, DCAE], layer: str, kept: Tensor, batches: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float
) -> Tensor:
    """`(K, F)`: each feature of the first model as a combination of the kept features of the second.

    A batch is what either model goes on from, images or latents, and the images' pixel weights.
    """
    gram = cross = None
    device = next(models[0].parameters()).device
    for *starts, weights in batches:
        x, y = (features_of(model, layer, start.to(device)) for model, start in zip(models, starts, strict=True))
        target, seen = rows(x), rows(y)[:, kept]
        weighted = seen * pixel_weights(weights, x)
        here, there = weighted.T @ seen, weighted.T @ target
        gram = here if gram is None else gram + here
        cross = there if cross is None else cross + there
    assert gram is not None and cross is not None
    return _solve(gram, cross, kept, ridge)


def _solve(gram: Tensor, cross: Tensor, kept: Tensor, ridge: float) -> Tensor:
    strength = ridge * gram.diagonal().mean().clamp_min(1e-30)
    gram.diagonal().add_(strength)
    cross[torch.arange(len(kept)), kept] += strength
    return torch.linalg.solve(gram, cross)


def fold_alone(
    dense: DCAE, keep: Keep, grams: Mapping[str, np.ndarray], masks: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """As `compensate` for internal sites, each fitted as if it alone were pruned: from the dense model's statistics, no pass.

    `grams[site]` is `(F, F)`, the Gram matrix of the site's features (`calibration.statistics`).
    """
    config, layout, state = dense.config, dense.layout, dense.state_dict()
    result = zero(state, config, layout, keep)
    for name, kept_units in keep.items():
        site = sites(config)[name]
        layer, units = f"{folding_layer(site)}.weight", feature_units(config, layout, site).of_unit
        kept = torch.from_numpy(units[list(kept_units)].reshape(-1)).sort().values
        weight, gram = state[layer], torch.from_numpy(grams[name])
        fit = _solve(gram[kept][:, kept], gram[kept].clone(), kept, RIDGE).to(weight.device)
        result[layer] = _masked(_folded(weight, kept, fit), layer, masks)
    return result


def _folded(weight: Tensor, kept: Tensor, fit: Tensor) -> Tensor:
    """W' = W A^T over the feature dimension, (O, F, k, k) x (K, F) -> (O, K, k, k), in the dense shape."""
    folded = torch.zeros_like(weight)
    folded[:, kept] = torch.einsum("ofij,kf->okij", weight.double(), fit).to(weight.dtype)
    return folded


def _masked(weight: Tensor, name: str, masks: Mapping[str, Tensor] | None) -> Tensor:
    return weight * masks[name].to(weight.device) if masks and name in masks else weight
