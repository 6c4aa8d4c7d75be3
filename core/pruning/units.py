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
    if site.kind == "stream":
        return _stream_slices(config, site, chosen)
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


def _stream_slices(config: DCAEConfig, site: Site, units: np.ndarray) -> list[Slice]:
    """A stage's residual stream: what makes its channels, its blocks' outer ends and norms, and what reads it."""
    coder, name, stage = config.coder(site.coder), site.coder, site.stage
    first, last = coder.first_stage, coder.num_stages - 1
    channels = (units[:, None] * site.channels + np.arange(site.channels)).reshape(-1)
    fours = (channels[:, None] * 4 + np.arange(4)).reshape(-1)
    if name == "encoder":
        at_end = f"{name}.conv_in" + (".conv" if first else "")
        maker = at_end if stage == first else f"{name}.stages.{stage - 1}.down.conv"
        rows = units if site.channels == 4 else channels
        reader = f"{name}.conv_out" if stage == last else f"{name}.stages.{stage}.down.conv"
    else:
        maker = f"{name}.conv_in" if stage == last else f"{name}.stages.{stage}.up.conv"
        rows = fours if coder.resample == "shuffle" and stage != last else channels
        at_end = f"{name}.conv_out" + (".conv" if first else "")
        reader = at_end if stage == first else f"{name}.stages.{stage - 1}.up.conv"
    found = [Slice(f"{maker}.weight", 0, rows), Slice(f"{maker}.bias", 0, rows), Slice(f"{reader}.weight", 1, channels)]
    for block in range(coder.depths[stage]):
        prefix = f"{name}.stages.{stage}.blocks.{block}"
        if coder.blocks[stage] == "resblock":
            branches = [(f"{prefix}.conv1", f"{prefix}.conv2", f"{prefix}.norm")]
        else:
            branches = [
                (f"{prefix}.attn.qkv", f"{prefix}.attn.proj", f"{prefix}.attn.norm"),
                (f"{prefix}.glu.inverted", f"{prefix}.glu.pointwise", f"{prefix}.glu.norm"),
            ]
        for begins, ends, norm in branches:
            found += [Slice(f"{begins}.weight", 1, channels), Slice(f"{ends}.weight", 0, channels)]
            found += [Slice(tensor, 0, channels) for tensor in norm_tensors(norm, coder.norms[stage])]
    if name == "decoder" and stage == first:
        found += [Slice(tensor, 0, channels) for tensor in norm_tensors(f"{name}.norm_out", coder.out_norm)]
    return found


def norm_tensors(norm: str, kind: str) -> list[str]:
    """State-dict names of a norm's values of a channel."""
    return [f"{norm}.{part}" for part in ("weight", "bias", *(("running_mean", "running_var") if kind == "bn2d" else ()))]


def stream_norms(config: DCAEConfig, site: Site) -> list[str]:
    """Weights of the RMS norms over a stream: they are scaled where the stream is cut (see `dcaecore.blocks.make_norm`)."""
    coder = config.coder(site.coder)
    found = []
    if coder.norms[site.stage] == "trms2d":
        for block in range(coder.depths[site.stage]):
            prefix = f"{site.coder}.stages.{site.stage}.blocks.{block}"
            parts = ("norm",) if coder.blocks[site.stage] == "resblock" else ("attn.norm", "glu.norm")
            found += [f"{prefix}.{part}.weight" for part in parts]
    if site.coder == "decoder" and site.stage == coder.first_stage and coder.out_norm == "trms2d":
        found.append("decoder.norm_out.weight")
    return found


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
