"""What a model costs, by arithmetic on its config and layout; free of torch, so a page predicts while a slider moves.

MACs are those of the convolutions (as in the published tables; norms, activations and attention's own products are not
counted). Tests hold parameters, buffers and MACs equal to the built model's, and the values kept for the backward pass
within a few per cent of what autograd saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from dcaecore.config import ENCODER_RESAMPLES, CoderConfig, DCAEConfig
from dcaecore.errors import ConfigError
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
    widths: tuple[int, ...]
    """What decides its shape besides its place: channels of the stream and units of its site, or channels in and out."""
    saved: int = 0
    """Values that autograd keeps of one image for the backward pass, the layer's input included."""


@dataclass(frozen=True)
class Cost:
    """Figures of one model at one image size."""

    parameters: int
    buffers: int
    """Values besides the parameters in the state dict: the BatchNorm statistics."""
    encode_macs: int
    decode_macs: int
    weight_bytes: int
    training_bytes: int
    """An estimate: weights, gradients and two AdamW moments, and what autograd keeps of a batch, all in float32."""
    modules: tuple[ModuleCost, ...]

    @property
    def macs(self) -> int:
        return self.encode_macs + self.decode_macs


def _conv(cin: int, cout: int, kernel: int, area: int, *, bias: bool = False, groups: int = 1) -> tuple[int, int]:
    weights = cin * cout * kernel * kernel // groups
    return weights + (cout if bias else 0), weights * area


def _total(*parts: tuple[int, int]) -> tuple[int, int]:
    return sum(p for p, _ in parts), sum(m for _, m in parts)


def _resample(name: str, coder: CoderConfig, cin: int, cout: int, side_in: int) -> ModuleCost:
    """The row of a Downsample or Upsample. The convolution keeps its input: for `interpolate`, the enlarged one."""
    kind, side = ("Downsample", side_in // 2) if coder.resample in ENCODER_RESAMPLES else ("Upsample", side_in * 2)
    width, side_conv, saved = {
        "unshuffle": (cout // 4, side_in, cin * side_in**2),
        "conv": (cout, side, cin * side_in**2),
        "shuffle": (cout * 4, side_in, cin * side_in**2),
        "interpolate": (cout, side, cin * side**2),
    }[coder.resample]
    return ModuleCost(name, kind, *_conv(cin, width, 3, side_conv**2, bias=True), "", side, (cin, cout), saved)


def _plain_conv(name: str, cin: int, cout: int, side: int) -> ModuleCost:
    return ModuleCost(name, "conv", *_conv(cin, cout, 3, side**2, bias=True), "", side, (cin, cout), cin * side**2)


def _stage(config: DCAEConfig, layout: Layout, name: str, stage: int, side: int) -> list[ModuleCost]:
    coder, known, rows = config.coder(name), sites(config), []
    width, area = len(layout.stream(config, name, stage)), side * side
    norm = (2 * width, 0)
    # BatchNorm keeps its input; the RMS norm its input and the scaled one.
    norm_saved = width if coder.norms[stage] == "bn2d" else 2 * width
    for block in range(coder.depths[stage]):
        prefix = f"{name}.stages.{stage}.blocks.{block}"
        if coder.blocks[stage] == "resblock":
            site = known[f"{prefix}.mid"]
            mid = layout.width(site)
            cost = _total(_conv(width, mid, 3, area, bias=True), _conv(mid, width, 3, area), norm)
            # The input; conv1's output and its SiLU, or one map for both where it is ReLU; what the norm keeps.
            saved = (width + mid * (1 if coder.acts[stage] == "relu" else 2) + norm_saved) * area
            rows.append(ModuleCost(prefix, "ResBlock", *cost, f"mid {mid}/{site.total}", side, (width, mid), saved))
            continue
        site = known[f"{prefix}.heads"]
        heads = layout.width(site)
        inner, scales = heads * coder.head_dim, coder.scales[stage]
        parts = [_conv(width, 3 * inner, 1, area), _conv(inner * (1 + len(scales)), width, 1, area), norm]
        for kernel in scales:
            parts.append(_conv(3 * inner, 3 * inner, kernel, area, groups=3 * inner))
            parts.append(_conv(3 * inner, 3 * inner, 1, area, groups=3 * heads))
        # The input; each scale's two inputs; of the attention q, k, v, the undivided and the divided output; proj's input is
        # the last of these.
        saved = (width + norm_saved + 6 * inner * len(scales) + 5 * inner * (1 + len(scales))) * area
        rows.append(
            ModuleCost(f"{prefix}.attn", "LiteMLA", *_total(*parts), f"heads {heads}/{site.total}", side, (width, heads), saved)
        )
        site = known[f"{prefix}.hidden"]
        hidden = layout.width(site)
        cost = _total(
            _conv(width, 2 * hidden, 1, area, bias=True),
            _conv(2 * hidden, 2 * hidden, 3, area, bias=True, groups=2 * hidden),
            _conv(hidden, width, 1, area),
            norm,
        )
        # The input; three maps of 2 h (inverted, its SiLU, depthwise) and two of h (the gate's SiLU, the product).
        saved = (width + norm_saved + 8 * hidden) * area
        rows.append(
            ModuleCost(f"{prefix}.glu", "GLUMBConv", *cost, f"hidden {hidden}/{site.total}", side, (width, hidden), saved)
        )
    return rows


def module_costs(config: DCAEConfig, layout: Layout, image_size: int) -> list[ModuleCost]:
    """The per-layer table of a square image, in the order in which data flows."""
    coder, side = config.encoder, image_size
    first, widths = coder.first_stage, stream_widths(config, layout, "encoder")
    if first == 0:
        rows = [_plain_conv("encoder.conv_in", config.in_channels, widths[0], side)]
    else:
        rows = [_resample("encoder.conv_in", coder, config.in_channels, widths[1], side)]
    for stage in range(first, coder.num_stages):
        rows += _stage(config, layout, "encoder", stage, rows[-1].side)
        if stage < coder.num_stages - 1:
            rows.append(_resample(f"encoder.stages.{stage}.down", coder, widths[stage], widths[stage + 1], rows[-1].side))
    rows.append(_plain_conv("encoder.conv_out", widths[-1], config.latent_channels, rows[-1].side))
    coder = config.decoder
    first, widths = coder.first_stage, stream_widths(config, layout, "decoder")
    rows.append(_plain_conv("decoder.conv_in", config.latent_channels, widths[-1], rows[-1].side))
    for stage in reversed(range(first, coder.num_stages)):
        if stage < coder.num_stages - 1:
            rows.append(_resample(f"decoder.stages.{stage}.up", coder, widths[stage + 1], widths[stage], rows[-1].side))
        rows += _stage(config, layout, "decoder", stage, rows[-1].side)
    side, width = rows[-1].side, widths[first]
    # As in a block, and SiLU's input besides the last convolution's.
    maps = (1 if coder.out_norm == "bn2d" else 2) + (1 if coder.out_act == "silu" else 0)
    rows.append(ModuleCost("decoder.norm_out", "norm", 2 * width, 0, "", side, (width,), maps * width * side**2))
    if first == 0:
        rows.append(_plain_conv("decoder.conv_out", width, config.in_channels, side))
    else:
        rows.append(_resample("decoder.conv_out", coder, width, config.in_channels, side))
    return rows


def stream_widths(config: DCAEConfig, layout: Layout, coder: str) -> tuple[int, ...]:
    """Channels of each stage's residual stream; of an empty first stage, the config's."""
    first, widths = config.coder(coder).first_stage, config.coder(coder).widths
    return tuple(len(layout.stream(config, coder, s)) if s >= first else widths[s] for s in range(len(widths)))


def _buffers(config: DCAEConfig, layout: Layout) -> int:
    """BatchNorm's running mean, running variance and counter, of every norm that is one."""
    values = 0
    for name in ("encoder", "decoder"):
        coder, widths = config.coder(name), stream_widths(config, layout, name)
        for stage, depth in enumerate(coder.depths):
            norms = 1 if coder.blocks[stage] == "resblock" else 2
            values += depth * norms * (2 * widths[stage] + 1) if coder.norms[stage] == "bn2d" else 0
        if name == "decoder" and coder.out_norm == "bn2d":
            values += 2 * widths[coder.first_stage] + 1
    return values


def estimate(
    config: DCAEConfig,
    layout: Layout | None = None,
    *,
    image_size: int = 128,
    dtype: str = "float32",
    batch_size: int = 1,
) -> Cost:
    """Figures of a config and layout for square images of `image_size` px.

    `dtype` is that of the stored weights. Raises ConfigError for a size that does not divide, an unknown dtype, or a
    layout that does not fit.
    """
    config.check_image_size(image_size, image_size)
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype {dtype!r} is not one of ours.", given=dtype, legal=sorted(DTYPE_BYTES))
    if batch_size < 1:
        raise ConfigError("batch_size is at least 1.", given=batch_size, legal="from 1")
    layout = layout or Layout()
    layout.validate(config)
    rows = module_costs(config, layout, image_size)
    parameters, buffers = sum(row.parameters for row in rows), _buffers(config, layout)
    return Cost(
        parameters=parameters,
        buffers=buffers,
        encode_macs=sum(row.macs for row in rows if row.name.startswith("encoder")),
        decode_macs=sum(row.macs for row in rows if row.name.startswith("decoder")),
        weight_bytes=(parameters + buffers) * DTYPE_BYTES[dtype],
        training_bytes=4 * (4 * parameters + buffers + batch_size * sum(row.saved for row in rows)),
        modules=tuple(rows),
    )
