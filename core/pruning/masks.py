"""Unstructured and semi-structured (2:4) pruning: which single weights become zero, by exact count.

Prunable are the weights of convolutions and linear layers (two dimensions or more); biases and norms are not. A rate is a share of
the *non-zero* prunable weights of the parent, so 0.5 twice is 75 %. Selection is by exact count: a threshold alone would keep 3 or
10 of 10 equal weights. Of equal magnitudes the ones that come first (tensor by name, then position) go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from core.errors import CoreError
from core.pruning.prunable import prunable, unfit
from dcaecore.sparse import GROUP, KEPT

_CHUNK = 1 << 18
"""Values looked at together: what is made of them stays in the processor's cache."""
_SAMPLE = 1 << 20


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of each tensor, by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def _check_finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise _damaged(name)


def _damaged(name: str) -> CoreError:
    return CoreError(f"{name} holds values that are not finite: the model is damaged.", code="not_finite", given=name)


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Magnitudes, a part at a time."""
    return (np.abs(values[start : start + _CHUNK]) for start in range(0, len(values), _CHUNK))


def _bracket(flat: Mapping[str, np.ndarray], count: int) -> tuple[float, float]:
    """Magnitudes that the `count`-th smallest of all non-zero values all but surely lies between, from a sample of them."""
    step = max(1, sum(map(len, flat.values())) // _SAMPLE)
    sample = np.sort(np.abs(np.concatenate([values[::step] for values in flat.values()])))
    sample = sample[sample > 0]
    place, spread = count / step, 8 * len(sample) ** 0.5 + 8

    def at(index: float, beyond: float) -> float:
        return float(sample[int(index)]) if 0 <= index < len(sample) else beyond

    return at(place - spread, 0.0), at(place + spread, float("inf"))


def _around(name: str, values: np.ndarray, low: float, high: float) -> tuple[int, np.ndarray]:
    """How many non-zero magnitudes are below the bracket, and those in it; raises CoreError for values that are not finite."""
    below, inside = 0, []
    for chunk in _chunks(values):
        if not np.isfinite(chunk.max()):
            raise _damaged(name)
        under = chunk < low
        if low > 0:
            below += int(np.count_nonzero(under)) - int(np.count_nonzero(chunk == 0))
        found = chunk[np.greater(chunk <= high, under)]
        inside.append(found if low > 0 else found[found > 0])
    return below, np.concatenate(inside) if inside else np.zeros(0, np.float32)


def smallest(values: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Bool masks (True = kept) that drop exactly the `count` non-zero weights of least magnitude over all given tensors.

    A sample brackets the threshold; one pass counts what lies below and collects what lies between, where it is selected exactly.
    Tensor by tensor: what is concatenated are the sample and a few values in a hundred.
    """
    names = sorted(values)
    if count <= 0:
        return {name: values[name] != 0 for name in names}
    flat = {name: values[name].detach().to("cpu", torch.float32).contiguous().view(-1).numpy() for name in names}
    with ThreadPoolExecutor() as pool:

        def around(low: float, high: float) -> tuple[int, np.ndarray]:
            found = list(pool.map(lambda name: _around(name, flat[name], low, high), names))
            return sum(below for below, _ in found), np.concatenate([inside for _, inside in found])

        below, inside = around(*_bracket(flat, count))
        if not below < count <= below + len(inside):
            below, inside = around(0.0, float("inf"))
        place = count - below - 1
        threshold = np.partition(inside, place)[place]
        kept = dict(zip(names, pool.map(lambda name: _at_least(flat[name], threshold), names), strict=True))
    ties = count - below - int(np.count_nonzero(inside < threshold))
    masks = {}
    for name in names:
        if ties:
            first = np.flatnonzero(np.abs(flat[name]) == threshold)[:ties]
            ties -= len(first)
            kept[name][first] = False
        masks[name] = torch.from_numpy(kept[name]).view(values[name].shape).to(values[name].device)
    return masks


def _at_least(values: np.ndarray, threshold: np.float32) -> np.ndarray:
    found = np.empty(len(values), dtype=bool)
    for start in range(0, len(values), _CHUNK):
        np.greater_equal(np.abs(values[start : start + _CHUNK]), threshold, out=found[start : start + _CHUNK])
    return found


def prune_weights(
    state: Mapping[str, Tensor],
    method: str,
    *,
    rate: float | None = None,
    threshold: float | None = None,
    part: str = "both",
) -> dict[str, Tensor]:
    """Masks (True = kept) of all prunable tensors of `part`: zeros of the parent stay zero.

    `l1_unstructured` takes the rate of each tensor, `global_magnitude` one ranking over all; `threshold` drops every magnitude below
    it. Raises CoreError where that would zero a whole tensor, or nothing at all.
    """
    names = prunable(shapes_of(state), part)
    values = {name: state[name].detach() for name in names}
    alive = {name: int((value != 0).sum()) for name, value in values.items()}
    if threshold is not None:
        masks = {name: (value != 0) & (value.abs() >= threshold) for name, value in values.items()}
    elif method == "l1_unstructured":
        assert rate is not None
        masks = {}
        for name in names:
            masks.update(smallest({name: values[name]}, round(rate * alive[name])))
    else:
        assert rate is not None
        masks = smallest(values, round(rate * sum(alive.values())))
    empty = [name for name in names if alive[name] and not masks[name].any()]
    if empty:
        raise CoreError(
            f"{empty[0]} would lose its last weight.", code="empty_layer", given=threshold or rate, next="Prune less."
        )
    if all(int(masks[name].sum()) == alive[name] for name in names):
        raise CoreError("No weight would be pruned.", code="nothing_to_prune", given=threshold or rate, next="Prune more.")
    return masks


def two_four(state: Mapping[str, Tensor], *, part: str = "both") -> dict[str, Tensor]:
    """Masks (True = kept) that keep two of each four consecutive input channels, for each output and kernel position.

    The two of largest magnitude stay, so zeros go first; of equal ones the lower index stays. `(O, I, kh, kw)` or `(O, I)`, I
    being the input channels of a group. Tensors that do not fit (see `unfit`) have no mask. N:M sparsity: arXiv 2104.08378.
    """
    shapes, masks = shapes_of(state), {}
    whole = set(unfit(shapes, part))
    for name in prunable(shapes, part):
        if name in whole:
            continue
        _check_finite(name, state[name])
        size = state[name].detach().abs().movedim(1, -1)  # (O, kh, kw, I)
        order = size.unflatten(-1, (-1, GROUP)).argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros(order.shape, dtype=torch.bool, device=order.device).scatter_(-1, order[..., :KEPT], True)
        masks[name] = kept.flatten(-2).movedim(-1, 1).contiguous()
    return masks


def combine(*several: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks that keep what all of them keep; a tensor that one of them does not name is kept whole by it."""
    found: dict[str, Tensor] = {}
    for masks in several:
        for name, mask in masks.items():
            found[name] = found[name] & mask.to(found[name].device) if name in found else mask
    return found


def apply_masks(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with masked ones at exactly zero."""
    return {
        name: value.masked_fill(~masks[name].to(value.device), 0.0) if name in masks else value for name, value in state.items()
    }
