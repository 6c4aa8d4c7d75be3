"""DC-AE as a module, built from a config and a layout; `(B, 3, H, W)` images in [-1, 1] to latents and back.

Module names are our state-dict keys:

    encoder.conv_in  encoder.stages.i.blocks.j  encoder.stages.i.down  encoder.conv_out
    decoder.conv_in  decoder.stages.i.up        decoder.stages.i.blocks.j  decoder.norm_out  decoder.conv_out

A decoder stage upsamples from the coarser stage first, then runs its blocks; stages run from coarse to fine.
"""

from __future__ import annotations

from torch import Tensor, nn

from dcaecore.blocks import Average, Downsample, Duplicate, EViTBlock, ResBlock, Upsample, make_act, make_norm
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, sites


class Stage(nn.Module):
    """The blocks of one resolution, with the resampling layer towards it (decoder: `up`) or from it (encoder: `down`)."""

    def __init__(self, blocks: list[nn.Module], *, down: nn.Module | None = None, up: nn.Module | None = None) -> None:
        super().__init__()
        if up is not None:
            self.up = up
        self.blocks = nn.ModuleList(blocks)
        if down is not None:
            self.down = down

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if hasattr(self, "up"):
            x_BCHW = self.up(x_BCHW)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return self.down(x_BCHW) if hasattr(self, "down") else x_BCHW


def _blocks(config: DCAEConfig, layout: Layout, coder_name: str, stage: int) -> list[nn.Module]:
    coder = config.coder(coder_name)
    known = sites(config)
    norm, act, total = coder.norms[stage], coder.acts[stage], coder.widths[stage]
    width = len(layout.stream(config, coder_name, stage))
    made: list[nn.Module] = []
    for index in range(coder.depths[stage]):
        prefix = f"{coder_name}.stages.{stage}.blocks.{index}"
        if coder.blocks[stage] == "resblock":
            made.append(ResBlock(width, layout.width(known[f"{prefix}.mid"]), norm=norm, act=act, total=total))
        else:
            heads = layout.width(known[f"{prefix}.heads"])
            hidden = layout.width(known[f"{prefix}.hidden"])
            dim, scales = coder.head_dim, coder.scales[stage]
            made.append(EViTBlock(width, heads, hidden, head_dim=dim, scales=scales, norm=norm, total=total))
    return made


class Encoder(nn.Module):
    """Images to latents."""

    def __init__(self, config: DCAEConfig, layout: Layout) -> None:
        super().__init__()
        coder, first = config.encoder, config.encoder.first_stage
        image, latents = range(config.in_channels), range(config.latent_channels)
        streams = {stage: layout.stream(config, "encoder", stage) for stage in range(first, coder.num_stages)}
        if first == 0:
            self.conv_in: nn.Module = nn.Conv2d(config.in_channels, len(streams[0]), 3, padding=1)
        else:
            totals = config.in_channels, coder.widths[1]
            self.conv_in = Downsample(image, streams[1], totals, resample=coder.resample, shortcut=False)
        stages: list[nn.Module] = []
        for stage in range(coder.num_stages):
            down = None
            if first <= stage < coder.num_stages - 1:
                totals, held = (coder.widths[stage], coder.widths[stage + 1]), layout.held_channels(config, "encoder", stage + 1)
                down = Downsample(
                    streams[stage], streams[stage + 1], totals, resample=coder.resample, shortcut=coder.shortcut, held=held
                )
            stages.append(Stage(_blocks(config, layout, "encoder", stage), down=down))
        self.stages = nn.ModuleList(stages)
        last = streams[coder.num_stages - 1]
        self.conv_out = nn.Conv2d(len(last), config.latent_channels, 3, padding=1)
        self.average = Average(coder.widths[-1], config.latent_channels, last, latents) if coder.shortcut else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.conv_in(x_BCHW)
        for stage in self.stages:
            x = stage(x)
        y = self.conv_out(x)
        return y if self.average is None else y + self.average(x)


class Decoder(nn.Module):
    """Latents to images; not clamped."""

    def __init__(self, config: DCAEConfig, layout: Layout) -> None:
        super().__init__()
        coder, first = config.decoder, config.decoder.first_stage
        image, latents = range(config.in_channels), range(config.latent_channels)
        streams = {stage: layout.stream(config, "decoder", stage) for stage in range(first, coder.num_stages)}
        last = streams[coder.num_stages - 1]
        self.conv_in = nn.Conv2d(config.latent_channels, len(last), 3, padding=1)
        held = layout.held_channels(config, "decoder", coder.num_stages - 1)
        self.duplicate = Duplicate(config.latent_channels, coder.widths[-1], latents, last, held) if coder.shortcut else None
        stages: list[nn.Module] = []
        for stage in range(coder.num_stages):
            up = None
            if first <= stage < coder.num_stages - 1:
                totals, held = (coder.widths[stage + 1], coder.widths[stage]), layout.held_channels(config, "decoder", stage)
                up = Upsample(
                    streams[stage + 1], streams[stage], totals, resample=coder.resample, shortcut=coder.shortcut, held=held
                )
            stages.append(Stage(_blocks(config, layout, "decoder", stage), up=up))
        self.stages = nn.ModuleList(stages)
        self.norm_out = make_norm(coder.out_norm, len(streams[first]), coder.widths[first])
        self.act_out = make_act(coder.out_act)
        if first == 0:
            self.conv_out: nn.Module = nn.Conv2d(len(streams[0]), config.in_channels, 3, padding=1)
        else:
            totals = coder.widths[1], config.in_channels
            self.conv_out = Upsample(streams[1], image, totals, resample=coder.resample, shortcut=False)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x = self.conv_in(z_BCHW)
        if self.duplicate is not None:
            x = x + self.duplicate(z_BCHW)
        for stage in reversed(self.stages):
            x = stage(x)
        return self.conv_out(self.act_out(self.norm_out(x)))


class DCAE(nn.Module):
    """Deep compression autoencoder. Deterministic: no sampling, no KL.

    `config` says the shape, `layout` which units are kept of it (None: all). Raises ConfigError for a layout that does not fit.
    """

    def __init__(self, config: DCAEConfig, layout: Layout | None = None) -> None:
        super().__init__()
        self.config = config
        self.layout = layout or Layout()
        self.layout.validate(config)
        self.encoder = Encoder(config, self.layout)
        self.decoder = Decoder(config, self.layout)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [-1, 1] to `(B, latent_channels, H / s, W / s)`, unscaled; s is the spatial compression.

        Raises ConfigError where H or W does not divide by s.
        """
        self.config.check_image_size(x_BCHW.shape[-2], x_BCHW.shape[-1])
        return self.encoder(x_BCHW)

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """`(B, latent_channels, h, w)` to images of about [-1, 1], not clamped."""
        return self.decoder(z_BCHW)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The reconstruction: `decode(encode(x))`."""
        return self.decode(self.encode(x_BCHW))
