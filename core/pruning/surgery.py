"""A plan applied to weights: cut out (a narrower model), zeroed or masked (the same shapes). All read the slices of `units.py`.

Why not torch-pruning: its pruner cannot build on a DC-AE (the expand in the up shortcut raises ZeroDivisionError), and rooted at a
GLU it removes 95.9 % for 50 %. Its explicit-index groups are right for ResBlocks and GLUs, and tests hold ours bit-equal to them.
Slicing a state dict needs no graph, no example input and no forward pass, and takes the masks along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.pruning.units import Slice, stream_norms, unit_slices
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, sites


@dataclass(frozen=True)
class CutResult:
    """Weights, masks and layout after a cut."""

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    layout: Layout


def cut(
    state: Mapping[str, Tensor],
    config: DCAEConfig,
    layout: Layout,
    keep: Mapping[str, Sequence[int]],
    *,
    masks: Mapping[str, Tensor] | None = None,
    exact_norms: bool = True,
) -> CutResult:
    """Keeps only `keep` (current coordinates) of the named sites. Tensors that share a site's units (masks, moments) follow.

    `exact_norms`: the RMS norms over a cut stream go on as if the removed channels were there and zero; else they norm what is left.
    Raises ConfigError for illegal indices, before anything is cut. Nothing given is changed.
    """
    composed = layout.compose(config, keep)
    known = sites(config)
    new_state, new_masks = dict(state), dict(masks or {})
    for name, units in keep.items():
        for part in unit_slices(config, layout, known[name], units):
            index = torch.from_numpy(part.indices)
            for tensors in (new_state, new_masks):
                if part.tensor in tensors:
                    value = tensors[part.tensor]
                    tensors[part.tensor] = value.index_select(part.dim, index.to(value.device)).contiguous()
        if known[name].kind == "stream" and exact_norms:
            scale = (layout.width(known[name]) / len(units)) ** 0.5
            for norm in stream_norms(config, known[name]):
                new_state[norm] = new_state[norm] * scale
    return CutResult(new_state, new_masks, composed)


def zero(state: Mapping[str, Tensor], config: DCAEConfig, layout: Layout, keep: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The same shapes with every unit that `keep` does not name set to zero: computes what `cut` computes."""
    new_state = dict(state)
    for part in _gone(config, layout, keep):
        value = new_state[part.tensor]
        new_state[part.tensor] = value.index_fill(part.dim, torch.from_numpy(part.indices).to(value.device), 0)
    return new_state


def unit_masks(
    state: Mapping[str, Tensor], config: DCAEConfig, layout: Layout, keep: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Masks (True = kept) of every parameter that `zero` touches: biases and norms too, so that training moves nothing of a unit.

    They hold all of an internal site. A stream's shortcuts have no weights: its units are held by `Layout.hold` besides. Running
    statistics are no parameters and stay as they are, behind a norm whose weight and bias are masked.
    """
    found: dict[str, Tensor] = {}
    for part in _gone(config, layout, keep):
        if "running_" not in part.tensor and len(part.indices):
            mask = found.get(part.tensor)
            mask = torch.ones(state[part.tensor].shape, dtype=torch.bool) if mask is None else mask
            found[part.tensor] = mask.index_fill(part.dim, torch.from_numpy(part.indices), False)
    return found


def _gone(config: DCAEConfig, layout: Layout, keep: Mapping[str, Sequence[int]]) -> Iterator[Slice]:
    """The slices of the units that `keep` leaves out of the named sites; raises ConfigError for illegal indices."""
    known = sites(config)
    layout.compose(config, keep)
    for name, units in keep.items():
        kept = set(units)
        yield from unit_slices(config, layout, known[name], [u for u in range(layout.width(known[name])) if u not in kept])
