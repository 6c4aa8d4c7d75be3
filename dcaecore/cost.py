"""What a model costs, by arithmetic on its config and layout; free of torch, so a page predicts while a slider moves.

MACs are those of the convolutions (as in the published tables; norms, activations and attention's own products are not counted).
A test holds parameters and MACs equal to the built model's.
"""

from __future__ import annotations

from dataclasses import dataclass

from dcaecore.config import CoderConfig, DCAEConfig
from dcaecore.layout import Layout, sites

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class ModuleCost:
    """One row of the per-layer table: a block, a resampling layer or an end convolution."""

    name: str
    kind: str
    parameters: int
    macs: int
    """For one image."""
    units: str
    """What is left of its sites, such as `mid 16/32`."""
    side: int
    """Height and width of its output for a square image."""


@dataclass(frozen=True)
class Cost:
    """Figures of one model at one image size."""

    parameters: int
    encode_macs: int
    decode_macs: int
    weight_bytes: int
    training_bytes: int
    """An estimate: weights, gradients and two AdamW moments in float32, and the activations of a batch."""
    modules: tuple[ModuleCost, ...]

    @property
    def macs(self) -> int:
        return self.encode_macs + self.decode_macs


def _conv(cin: int, cout: int, kernel: int, area: int, *, bias: bool = False, groups: int = 1) -> tuple[int, int]:
    weights = cin * cout * kernel * kernel // groups
    return weights + (cout if bias else 0), weights * area


def _total(*parts: tuple[int, int]) -> tuple[int, int]:
    return sum(p for p, _ in parts), sum(m for _, m in parts)


def _resample(coder: CoderConfig, cin: int, cout: int, side_in: int) -> tuple[int, int, int]:
    """(parameters, MACs, side of the output) of a Downsample or Upsample."""
    if coder.resample == "unshuffle":
        return *_conv(cin, cout // 4, 3, side_in**2, bias=True), side_in // 2
    if coder.resample == "conv":
        return *_conv(cin, cout, 3, (side_in // 2) ** 2, bias=True), side_in // 2
    if coder.resample == "shuffle":
        return *_conv(cin, cout * 4, 3, side_in**2, bias=True), side_in * 2
    return *_conv(cin, cout, 3, (2 * side_in) ** 2, bias=True), side_in * 2


def _stage(config: DCAEConfig, layout: Layout, name: str, stage: int, side: int) -> list[ModuleCost]:
    coder, known, rows = config.coder(name), sites(config), []
    width, area = coder.widths[stage], side * side
    for block in range(coder.depths[stage]):
        prefix = f"{name}.stages.{stage}.blocks.{block}"
        norm = (2 * width, 0)
        if coder.blocks[stage] == "resblock":
            site = known[f"{prefix}.mid"]
            mid = layout.width(site)
            cost = _total(_conv(width, mid, 3, area, bias=True), _conv(mid, width, 3, area), norm)
            rows.append(ModuleCost(prefix, "ResBlock", *cost, f"mid {mid}/{site.total}", side))
            continue
        site = known[f"{prefix}.heads"]
        heads = layout.width(site)
        inner, scales = heads * coder.head_dim, coder.scales[stage]
        parts = [_conv(width, 3 * inner, 1, area), _conv(inner * (1 + len(scales)), width, 1, area), norm]
        for kernel in scales:
            parts.append(_conv(3 * inner, 3 * inner, kernel, area, groups=3 * inner))
            parts.append(_conv(3 * inner, 3 * inner, 1, area, groups=3 * heads))
        rows.append(ModuleCost(f"{prefix}.attn", "LiteMLA", *_total(*parts), f"heads {heads}/{site.total}", side))
        site = known[f"{prefix}.hidden"]
        hidden = layout.width(site)
        cost = _total(
            _conv(width, 2 * hidden, 1, area, bias=True),
            _conv(2 * hidden, 2 * hidden, 3, area, bias=True, groups=2 * hidden),
            _conv(hidden, width, 1, area),
            norm,
        )
        rows.append(ModuleCost(f"{prefix}.glu", "GLUMBConv", *cost, f"hidden {hidden}/{site.total}", side))
    return rows


def module_costs(config: DCAEConfig, layout: Layout, image_size: int) -> list[ModuleCost]:
    """The per-layer table of a square image, in the order in which data flows."""
    rows: list[ModuleCost] = []
    coder, side = config.encoder, image_size
    first = 0 if coder.depths[0] else 1
    if first == 0:
        cost = _conv(config.in_channels, coder.widths[0], 3, side**2, bias=True)
    else:
        *cost_list, side = _resample(coder, config.in_channels, coder.widths[1], side)
        cost = (cost_list[0], cost_list[1])
    rows.append(ModuleCost("encoder.conv_in", "conv", *cost, "", side))
    for stage in range(first, coder.num_stages):
        rows += _stage(config, layout, "encoder", stage, side)
        if stage < coder.num_stages - 1:
            parameters, macs, side = _resample(coder, coder.widths[stage], coder.widths[stage + 1], side)
            rows.append(ModuleCost(f"encoder.stages.{stage}.down", "Downsample", parameters, macs, "", side))
    cost = _conv(coder.widths[-1], config.latent_channels, 3, side**2, bias=True)
    rows.append(ModuleCost("encoder.conv_out", "conv", *cost, "", side))
    coder = config.decoder
    first = 0 if coder.depths[0] else 1
    cost = _conv(config.latent_channels, coder.widths[-1], 3, side**2, bias=True)
    rows.append(ModuleCost("decoder.conv_in", "conv", *cost, "", side))
    for stage in reversed(range(first, coder.num_stages)):
        if stage < coder.num_stages - 1:
            parameters, macs, side = _resample(coder, coder.widths[stage + 1], coder.widths[stage], side)
            rows.append(ModuleCost(f"decoder.stages.{stage}.up", "Upsample", parameters, macs, "", side))
        rows += _stage(config, layout, "decoder", stage, side)
    rows.append(ModuleCost("decoder.norm_out", "norm", 2 * coder.widths[first], 0, "", side))
    if first == 0:
        cost = _conv(coder.widths[0], config.in_channels, 3, side**2, bias=True)
    else:
        *cost_list, side = _resample(coder, coder.widths[1], config.in_channels, side)
        cost = (cost_list[0], cost_list[1])
    rows.append(ModuleCost("decoder.conv_out", "conv", *cost, "", side))
    return rows


def estimate(
    config: DCAEConfig,
    layout: Layout | None = None,
    *,
    image_size: int = 128,
    dtype: str = "float32",
    batch_size: int = 1,
) -> Cost:
    """Figures of a config and layout for square images; raises ConfigError for a size that does not divide."""
    config.check_image_size(image_size, image_size)
    layout = layout or Layout()
    rows = module_costs(config, layout, image_size)
    parameters = sum(row.parameters for row in rows)
    activations = 0
    for row in rows:
        coder = config.coder(row.name.split(".")[0])
        width = (
            coder.widths[min(int(row.name.split(".")[2]), coder.num_stages - 1)] if ".stages." in row.name else coder.widths[0]
        )
        # What autograd keeps of a block is about ten maps of its width (measured 8 to 12 on the demo shape).
        activations += 10 * width * row.side**2 * 4
    return Cost(
        parameters=parameters,
        encode_macs=sum(row.macs for row in rows if row.name.startswith("encoder")),
        decode_macs=sum(row.macs for row in rows if row.name.startswith("decoder")),
        weight_bytes=parameters * DTYPE_BYTES[dtype],
        training_bytes=parameters * 16 + activations * batch_size,
        modules=tuple(rows),
    )
