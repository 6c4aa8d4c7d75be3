"""Unstructured and semi-structured (2:4) pruning: which single weights become zero, by exact count.

Prunable are the weights of convolutions and linear layers (two dimensions or more); biases and norms are not. A rate is a share of
the *non-zero* prunable weights of the parent, so 0.5 twice is 75 %. Selection is by exact count: a threshold alone would keep 3 or
10 of 10 equal weights. Of equal magnitudes the ones that come first (tensor by name, then position) go.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from core.errors import CoreError

_LOW_BITS = 15


def prunable(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the prunable tensors, in name order."""
    return sorted(name for name, value in state.items() if name.endswith(".weight") and value.ndim >= 2)


def _bits(value: Tensor) -> Tensor:
    """Magnitudes as int32 bit patterns, which order like the magnitudes themselves."""
    return value.detach().float().abs().contiguous().view(torch.int32)


def _check_finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise CoreError(f"{name} holds values that are not finite: the model is damaged.", code="not_finite", given=name)


def smallest(values: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Bool masks (True = kept) that drop exactly the `count` non-zero weights of least magnitude over all given tensors.

    Two passes of a histogram over the float bits (16 high, then 15 low ones), tensor by tensor: no concatenation, no sort.
    """
    names = sorted(values)
    masks = {name: values[name] != 0 for name in names}
    if count <= 0:
        return masks
    for name in names:
        _check_finite(name, values[name])
    high = torch.zeros(1 << 16, dtype=torch.int64)
    for name in names:
        high += torch.bincount((_bits(values[name])[masks[name]] >> _LOW_BITS).cpu(), minlength=1 << 16)
    upto = high.cumsum(0)
    bucket = int(torch.searchsorted(upto, count))
    below = int(upto[bucket - 1]) if bucket else 0
    low = torch.zeros(1 << _LOW_BITS, dtype=torch.int64)
    for name in names:
        bits = _bits(values[name])[masks[name]]
        bits = bits[(bits >> _LOW_BITS) == bucket] & ((1 << _LOW_BITS) - 1)
        low += torch.bincount(bits.cpu(), minlength=1 << _LOW_BITS)
    upto = low.cumsum(0)
    rest = int(torch.searchsorted(upto, count - below))
    threshold = (bucket << _LOW_BITS) | rest
    ties = count - below - (int(upto[rest - 1]) if rest else 0)
    for name in names:
        bits = _bits(values[name])
        equal = (bits == threshold) & masks[name]
        masks[name] &= bits >= threshold
        if ties:
            first = equal.reshape(-1).nonzero()[:ties, 0]
            ties -= len(first)
            masks[name].view(-1)[first] = False
    return masks


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
    names = [name for name in prunable(state) if part == "both" or name.startswith(part)]
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


FOUR = 4


def unfit_for_two_four(state: Mapping[str, Tensor], *, part: str = "both") -> list[str]:
    """Prunable tensors of `part` whose input channels do not divide by four: depthwise convolutions, one that reads RGB."""
    return [name for name in prunable(state) if (part == "both" or name.startswith(part)) and state[name].shape[1] % FOUR]


def two_four(state: Mapping[str, Tensor], *, part: str = "both") -> dict[str, Tensor]:
    """Masks (True = kept) that keep two of each four consecutive input channels, for each output and kernel position.

    The two of largest magnitude stay, so zeros go first; of equal ones the lower index stays. `(O, I, kh, kw)` or `(O, I)`, I
    being the input channels of a group. Tensors that do not fit (see `unfit_for_two_four`) have no mask. N:M sparsity: arXiv
    2104.08378.
    """
    unfit = set(unfit_for_two_four(state, part=part))
    masks = {}
    for name in prunable(state):
        if name in unfit or not (part == "both" or name.startswith(part)):
            continue
        _check_finite(name, state[name])
        size = state[name].detach().abs().movedim(1, -1)  # (O, kh, kw, I)
        order = size.unflatten(-1, (-1, FOUR)).argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros(order.shape, dtype=torch.bool, device=order.device).scatter_(-1, order[..., :2], True)
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
