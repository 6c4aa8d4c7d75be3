"""Which slices of which tensors go with each unit of a site: the one table that scores, masks and surgery read. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, Site


@dataclass(frozen=True)
class Slice:
    """Indices along one dimension of a tensor (state-dict name)."""

    tensor: str
    dim: int
    indices: np.ndarray


def unit_slices(config: DCAEConfig, layout: Layout, site: Site, units: Iterable[int]) -> list[Slice]:
    """The slices that units (in current coordinates, in the given order) occupy in the tensors of a model of this layout.

    Keeping them makes the narrower block; zeroing them removes the units' effect and leaves every shape as it was.
    """
    chosen = np.asarray(list(units), dtype=np.int64)
    width = layout.width(site)
    prefix = site.name.rpartition(".")[0]
    coder = config.coder(site.coder)
    if site.kind == "mid":
        return [
            Slice(f"{prefix}.conv1.weight", 0, chosen),
            Slice(f"{prefix}.conv1.bias", 0, chosen),
            Slice(f"{prefix}.conv2.weight", 1, chosen),
        ]
    if site.kind == "hidden":
        pairs = np.concatenate([chosen, chosen + width])
        glu = f"{prefix}.glu"
        rows = [f"{glu}.{part}" for part in ("inverted.weight", "inverted.bias", "depthwise.weight", "depthwise.bias")]
        return [*(Slice(name, 0, pairs) for name in rows), Slice(f"{glu}.pointwise.weight", 1, chosen)]
    dim, attn = coder.head_dim, f"{prefix}.attn"
    scales = len(coder.scales[site.stage])
    rows_index = (chosen[:, None] * 3 * dim + np.arange(3 * dim)).reshape(-1)
    columns = (chosen[:, None] * dim + np.arange(dim)).reshape(-1)
    all_columns = np.concatenate([columns + scale * width * dim for scale in range(1 + scales)])
    names = [f"{attn}.qkv.weight"]
    for scale in range(scales):
        names += [f"{attn}.multiscale.{scale}.depthwise.weight", f"{attn}.multiscale.{scale}.pointwise.weight"]
    return [*(Slice(name, 0, rows_index) for name in names), Slice(f"{attn}.proj.weight", 1, all_columns)]


@dataclass(frozen=True)
class FeatureUnits:
    """How a site's units lie among the channels that its folding layer reads: unit u owns `of_unit[u]`, `(per_unit,)` each."""

    of_unit: np.ndarray
    """int64 `(units, per_unit)`."""

    @property
    def per_unit(self) -> int:
        return int(self.of_unit.shape[1])


def folding_layer(site: Site) -> str:
    """The module that reads a site's features and takes a fold: the weight's dimension 1 are the features."""
    prefix = site.name.rpartition(".")[0]
    return f"{prefix}." + {"mid": "conv2", "hidden": "glu.pointwise", "heads": "attn.proj"}[site.kind]


def feature_units(config: DCAEConfig, layout: Layout, site: Site) -> FeatureUnits:
    """The feature channels of each unit: one (mid, hidden), or head_dim a scale (heads)."""
    units = layout.width(site)
    if site.kind != "heads":
        return FeatureUnits(np.arange(units)[:, None])
    dim, scales = config.coder(site.coder).head_dim, 1 + len(config.coder(site.coder).scales[site.stage])
    heads = np.arange(units)[:, None, None] * dim
    columns = heads + (np.arange(scales) * units * dim)[None, :, None] + np.arange(dim)
    return FeatureUnits(columns.reshape(units, scales * dim))
