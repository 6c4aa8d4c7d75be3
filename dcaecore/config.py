"""The shape of a DC-AE as data, free of torch: one `CoderConfig` for each half, one `DCAEConfig` for the whole.

Config and `Layout` (which units are kept) tell variants and pruned models apart; no code does. Field names follow the
paper (Chen et al., arXiv 2410.10733) and mit-han-lab/efficientvit `models/efficientvit/dc_ae.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from dcaecore.errors import ConfigError

BlockName = Literal["resblock", "evit"]
NormName = Literal["trms2d", "bn2d"]
ActName = Literal["silu", "relu"]

ENCODER_RESAMPLES = ("unshuffle", "conv")
DECODER_RESAMPLES = ("shuffle", "interpolate")


@dataclass(frozen=True)
class CoderConfig:
    """One half of the autoencoder. Stage 0 is the one at image resolution, in the encoder and in the decoder."""

    widths: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage. `depths[0] == 0`: the first convolution (encoder) or last (decoder) does a 2x change."""
    blocks: tuple[BlockName, ...]
    """Kind of block of each stage."""
    scales: tuple[tuple[int, ...], ...]
    """Depthwise kernel sizes of LiteMLA's further branches, of each stage; () for none."""
    norms: tuple[NormName, ...]
    """Norm of each stage: per-pixel RMS over the channels, or BatchNorm."""
    acts: tuple[ActName, ...]
    """Activation of each stage's ResBlocks and of GLUMBConv."""
    resample: Literal["unshuffle", "conv", "shuffle", "interpolate"]
    """Encoder: conv + pixel-unshuffle, or stride-2 conv. Decoder: conv + pixel-shuffle, or nearest x2 + conv."""
    shortcut: bool = True
    """Parameter-free shortcuts (channel averaging or duplicating) around the resampling layers."""
    out_norm: NormName = "trms2d"
    """Decoder: norm before the last convolution."""
    out_act: ActName = "relu"
    """Decoder: activation before the last convolution."""
    head_dim: int = 32
    """Channels of an attention head."""
    expand: int = 4
    """GLUMBConv's hidden channels over its width."""

    @property
    def num_stages(self) -> int:
        return len(self.widths)

    @property
    def first_stage(self) -> int:
        """The stage next to the image that has a residual stream: an empty stage 0 has none."""
        return 0 if self.depths[0] else 1

    def heads(self, stage: int) -> int:
        """Attention heads of a stage's blocks before pruning."""
        return self.widths[stage] // self.head_dim

    def hidden(self, stage: int) -> int:
        """GLU pairs of a stage's blocks before pruning."""
        return self.widths[stage] * self.expand


@dataclass(frozen=True)
class DCAEConfig:
    """A whole autoencoder; images are `(B, in_channels, H, W)` in [-1, 1]."""

    encoder: CoderConfig
    decoder: CoderConfig
    in_channels: int = 3
    latent_channels: int = 32
    scaling_factor: float = 1.0
    """Latents times this have about unit variance; `encode` returns them unscaled."""

    def __post_init__(self) -> None:
        self.validate()

    @property
    def spatial_compression(self) -> int:
        """Image side over latent side."""
        return 2 ** (self.encoder.num_stages - 1)

    def coder(self, name: str) -> CoderConfig:
        """`encoder` or `decoder` by name."""
        return {"encoder": self.encoder, "decoder": self.decoder}[name]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DCAEConfig:
        """Reads `to_json`'s values; raises ConfigError that names an unknown or missing field."""
        known = {f.name for f in fields(cls)}
        if not {"encoder", "decoder"} <= set(data) or set(data) - known:
            raise ConfigError("This is not the config of a DC-AE.", given=sorted(data), legal=sorted(known))
        rest = {key: data[key] for key in known - {"encoder", "decoder"} if key in data}
        return cls(encoder=_coder_from_json(data["encoder"]), decoder=_coder_from_json(data["decoder"]), **rest)

    def check_image_size(self, height: int, width: int) -> None:
        """Raises ConfigError where an image does not divide by the spatial compression."""
        step = self.spatial_compression
        if height % step or width % step or height < step or width < step:
            near = max(step, round(max(height, width) / step) * step)
            raise ConfigError(
                f"Images of {height} x {width} px do not divide by this model's spatial compression of {step}.",
                code="image_size",
                given=[height, width],
                legal=f"multiples of {step}",
                next=f"Try {near}.",
            )

    def validate(self) -> None:
        """Raises ConfigError that names the field which cannot be."""
        for name in ("encoder", "decoder"):
            _validate_coder(name, self.coder(name))
        if self.encoder.num_stages != self.decoder.num_stages:
            raise ConfigError(
                "encoder.widths and decoder.widths differ in length.",
                given=[self.encoder.num_stages, self.decoder.num_stages],
                legal="the same number of stages",
            )
        legal_resample = {"encoder": ENCODER_RESAMPLES, "decoder": DECODER_RESAMPLES}
        for name, legal in legal_resample.items():
            if self.coder(name).resample not in legal:
                raise ConfigError(f"{name}.resample is not legal.", given=self.coder(name).resample, legal=legal)
        if self.in_channels < 1 or self.latent_channels < 1:
            raise ConfigError("in_channels and latent_channels are at least 1.", given=self.latent_channels)
        last = self.encoder.widths[-1]
        if self.encoder.shortcut and last % self.latent_channels:
            raise ConfigError(
                "encoder.widths: the last width must be a multiple of latent_channels.", given=last, legal="a multiple"
            )
        if self.decoder.shortcut and self.decoder.widths[-1] % self.latent_channels:
            raise ConfigError(
                "decoder.widths: the last width must be a multiple of latent_channels.", given=self.decoder.widths[-1]
            )


def _coder_from_json(data: Mapping[str, Any]) -> CoderConfig:
    known = {f.name for f in fields(CoderConfig)}
    unknown = set(data) - known
    if unknown:
        raise ConfigError(f"Unknown field {sorted(unknown)[0]!r} in a coder config.", given=sorted(unknown), legal=sorted(known))
    values = {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in data.items()}
    if "scales" in values:
        values["scales"] = tuple(tuple(scale) for scale in values["scales"])
    try:
        return CoderConfig(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"A coder config lacks a field: {error}", given=sorted(data), legal=sorted(known)) from error


def _validate_coder(name: str, coder: CoderConfig) -> None:
    count = coder.num_stages
    if count < 2:
        raise ConfigError(f"{name}.widths needs at least two stages.", given=coder.widths)
    for field in ("depths", "blocks", "scales", "norms", "acts"):
        if len(getattr(coder, field)) != count:
            raise ConfigError(
                f"{name}.{field} has {len(getattr(coder, field))} entries for {count} stages.", legal=f"{count} entries"
            )
    legal: dict[str, tuple[str, ...]] = {
        "blocks": ("resblock", "evit"),
        "norms": ("trms2d", "bn2d"),
        "acts": ("silu", "relu"),
        "out_norm": ("trms2d", "bn2d"),
        "out_act": ("silu", "relu"),
    }
    for field, values in legal.items():
        given = getattr(coder, field)
        for value in (given,) if isinstance(given, str) else given:
            if value not in values:
                raise ConfigError(f"{name}.{field} holds {value!r}.", given=value, legal=values)
    counts = (*coder.widths, *coder.depths, *(kernel for scale in coder.scales for kernel in scale))
    if not all(type(value) is int for value in (*counts, coder.head_dim, coder.expand)):
        raise ConfigError(f"{name}: widths, depths, scales, head_dim and expand are whole numbers.", given=counts)
    if coder.head_dim < 1 or coder.expand < 1:
        raise ConfigError(
            f"{name}.head_dim and {name}.expand are at least 1.", given=[coder.head_dim, coder.expand], legal="from 1"
        )
    for kernel in (kernel for scale in coder.scales for kernel in scale):
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"{name}.scales holds {kernel}.", given=kernel, legal="odd kernel sizes")
    if any(depth < 0 for depth in coder.depths) or any(width < 1 for width in coder.widths):
        raise ConfigError(f"{name}.widths are at least 1 and {name}.depths at least 0.", given=[coder.widths, coder.depths])
    for stage, (width, kind, depth) in enumerate(zip(coder.widths, coder.blocks, coder.depths, strict=True)):
        if kind == "evit" and depth and width % coder.head_dim:
            raise ConfigError(
                f"{name}.widths[{stage}] must be a multiple of head_dim for EfficientViT blocks.",
                given=width,
                legal=f"multiples of {coder.head_dim}",
            )
    for a, b in zip(coder.widths[:-1], coder.widths[1:], strict=True):
        # The encoder averages 4 a channels to b; the decoder repeats b channels to 4 a.
        if coder.shortcut and (4 * a) % b:
            raise ConfigError(
                f"{name}.widths {a} and {b}: the shortcut needs 4 x {a} to be a multiple of {b}.", given=coder.widths
            )
        if coder.resample in ("unshuffle", "shuffle") and name == "encoder" and b % 4:
            raise ConfigError(f"{name}.widths: {b} must be a multiple of 4 for pixel-unshuffle.", given=coder.widths)


def check_teacher(teacher: DCAEConfig, student: DCAEConfig, *, features: bool) -> None:
    """Raises ConfigError where one model cannot teach another: latents of another shape or, with `features`, stages of other widths."""
    shapes = [(config.latent_channels, config.spatial_compression) for config in (teacher, student)]
    if shapes[0] != shapes[1]:
        (a, by_a), (b, by_b) = shapes
        raise ConfigError(
            f"The teacher's latents ({a} channels, {by_a} x) are not the student's ({b} channels, {by_b} x).",
            code="teacher",
            given=shapes[0],
            legal=shapes[1],
            next="Choose an ancestor of this model.",
        )
    if features and (teacher.encoder.widths, teacher.decoder.widths) != (student.encoder.widths, student.decoder.widths):
        raise ConfigError(
            "The teacher's stages have other widths: its features cannot be compared.",
            code="teacher",
            next="Choose an ancestor of this model, or distill its output or latents alone.",
        )
