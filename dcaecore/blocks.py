"""The building blocks of DC-AE, written from the facts of the paper (arXiv 2410.10733) and the efficientvit reference.

Axes: B batch, C channels, H height, W width, N = H * W, D head dimension, G heads (times scales).
Every block takes its unit counts as arguments (`mid`, `hidden`, `heads`): a pruned block is a narrower block, not
another one.

Notable choices:
- RMS norm in plain torch, over the channels of each pixel: float64 and bfloat16 work and nothing needs to be built.
- Attention accumulates in `promote_types(dtype, float32)`: bfloat16 stays stable and float64 tests stay float64 tests.
- The parameter-free shortcuts are reshapes, and index gathers where channels were cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-5
ATTENTION_EPS = 1e-15


class RMSNorm2d(nn.Module):
    """Per-pixel RMS over the channels with weight and bias (`trms2d` in the reference); `(B, C, H, W)` in and out."""

    def __init__(self, channels: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # In bfloat16 a mean of squares would cost a fifth of the model's precision; in float32 nothing is converted.
        x_wide = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        scale_B1HW = torch.rsqrt(x_wide.square().mean(1, keepdim=True) + self.eps)
        unit_BCHW = (x_wide * scale_B1HW).to(x_BCHW.dtype)
        return torch.addcmul(self.bias.view(-1, 1, 1), unit_BCHW, self.weight.view(-1, 1, 1))


def make_norm(name: str, channels: int, total: int | None = None) -> nn.Module:
    """`trms2d` or `bn2d`, over `channels` left of `total`.

    Where channels were cut the RMS is over fewer: `eps * total / channels`, with the weight scaled by `sqrt(total / channels)` at
    the cut, is what the full norm computes with the others at zero.
    """
    return nn.BatchNorm2d(channels) if name == "bn2d" else RMSNorm2d(channels, NORM_EPS * (total or channels) / channels)


def make_act(name: str) -> nn.Module:
    """`silu` or `relu`."""
    return nn.ReLU() if name == "relu" else nn.SiLU()


class ResBlock(nn.Module):
    """3x3 conv, activation, 3x3 conv, norm, plus the input; `mid` channels lie between the convolutions."""

    def __init__(self, channels: int, mid: int, *, norm: str, act: str, total: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, mid, 3, padding=1)
        self.act = make_act(act)
        self.conv2 = nn.Conv2d(mid, channels, 3, padding=1, bias=False)
        self.norm = make_norm(norm, channels, total)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.norm(self.conv2(self.act(self.conv1(x_BCHW))))


class MultiScale(nn.Module):
    """A further scale of LiteMLA's qkv: depthwise conv, then a 1x1 conv grouped by head and by q, k, v."""

    def __init__(self, heads: int, head_dim: int, kernel: int) -> None:
        super().__init__()
        width = 3 * heads * head_dim
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, groups=3 * heads, bias=False)

    def forward(self, qkv_BCHW: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(qkv_BCHW))


class LiteMLA(nn.Module):
    """ReLU linear attention (EfficientViT, arXiv 2205.14756) with its residual: `x + norm(proj(attention(qkv(x))))`.

    Rows of qkv are interleaved by head: `3 * head_dim` rows of a head are its q, k and v. Where H * W <= head_dim the
    quadratic form is cheaper and is used, as in the reference.
    """

    def __init__(
        self, channels: int, heads: int, *, head_dim: int, scales: Sequence[int], norm: str, total: int | None = None
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        width = heads * head_dim
        self.qkv = nn.Conv2d(channels, 3 * width, 1, bias=False)
        self.multiscale = nn.ModuleList(MultiScale(heads, head_dim, kernel) for kernel in scales)
        self.proj = nn.Conv2d(width * (1 + len(scales)), channels, 1, bias=False)
        self.norm = make_norm(norm, channels, total)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        qkv = self.qkv(x_BCHW)
        if len(self.multiscale):
            qkv = torch.cat([qkv, *(scale(qkv) for scale in self.multiscale)], dim=1)
        batch, _, height, width = qkv.shape
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        qkv_BGDN = qkv.reshape(batch, -1, 3 * self.head_dim, height * width).to(dtype)
        q, k, v = qkv_BGDN.chunk(3, dim=2)
        kind = x_BCHW.device.type
        # Autocast would lower the products below `dtype`; the meta device has none to switch off, an exported graph none at all.
        switch = torch.amp.is_autocast_available(kind) and not torch.compiler.is_exporting()
        with torch.autocast(kind, enabled=False) if switch else nullcontext():
            out_BGDN = _attend(q.relu(), k.relu(), v)
        out = out_BGDN.reshape(batch, -1, height, width).to(qkv.dtype)
        return x_BCHW + self.norm(self.proj(out))


def _attend(q_BGDN: Tensor, k_BGDN: Tensor, v_BGDN: Tensor) -> Tensor:
    """Kernel attention with ReLU features; the last row of `v` padded with ones gives the normaliser.

    An exported graph takes the linear form, which equals the other, whatever the size: it must serve every size.
    """
    if not torch.compiler.is_exporting() and q_BGDN.shape[-1] <= q_BGDN.shape[-2]:
        scores_BGNN = k_BGDN.transpose(-1, -2) @ q_BGDN
        scores_BGNN = scores_BGNN / (scores_BGNN.sum(dim=2, keepdim=True) + ATTENTION_EPS)
        return v_BGDN @ scores_BGNN
    v_BGDN = F.pad(v_BGDN, (0, 0, 0, 1), value=1.0)
    out = (v_BGDN @ k_BGDN.transpose(-1, -2)) @ q_BGDN
    return out[:, :, :-1] / (out[:, :, -1:] + ATTENTION_EPS)


class GLUMBConv(nn.Module):
    """Gated inverted bottleneck with its residual.

    1x1 conv to 2 * hidden, SiLU, depthwise 3x3, x * act(gate), 1x1 conv, norm.
    """

    def __init__(self, channels: int, hidden: int, *, norm: str, act: str, total: int | None = None) -> None:
        super().__init__()
        self.inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.pointwise = nn.Conv2d(hidden, channels, 1, bias=False)
        self.act = make_act(act)
        self.norm = make_norm(norm, channels, total)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x, gate = self.depthwise(self.act(self.inverted(x_BCHW))).chunk(2, dim=1)
        return x_BCHW + self.norm(self.pointwise(x * self.act(gate)))


class EViTBlock(nn.Module):
    """LiteMLA, then GLUMBConv, each with its residual."""

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        *,
        head_dim: int,
        scales: Sequence[int],
        norm: str,
        total: int | None = None,
    ) -> None:
        super().__init__()
        self.attn = LiteMLA(channels, heads, head_dim=head_dim, scales=scales, norm=norm, total=total)
        self.glu = GLUMBConv(channels, hidden, norm=norm, act="silu", total=total)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.glu(self.attn(x_BCHW))


Channels = Sequence[int]
"""Original channels that are there, ascending."""
NOWHERE = -1
"""Stands for a channel that is never there: a gather takes zero for it."""


class Average(nn.Module):
    """Mean over groups of adjacent channels: `(B, C, H, W)` to `(B, channels, H, W)`; C is a multiple of `channels`.

    Where channels were cut (`kept_in` of C, `kept_out` of `channels`), a gather: what is missing counts as zero, and what is `held`
    of the channels out is zero.
    """

    index: Tensor | None

    def __init__(self, total_in: int, total_out: int, kept_in: Channels, kept_out: Channels, held: Channels = ()) -> None:
        super().__init__()
        self.group = total_in // total_out
        at_zero = set(held)
        wanted = [NOWHERE if j in at_zero else self.group * j + k for j in kept_out for k in range(self.group)]
        self.register_buffer("index", _gather_index(wanted, kept_in, total_in), persistent=False)
        self.channels_out = len(kept_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _gather(x_BCHW, self.index).unflatten(1, (self.channels_out, self.group)).mean(2)


class Duplicate(nn.Module):
    """Each channel repeated in place: `(B, C, H, W)` to `(B, channels, H, W)`; `channels` is a multiple of C.

    Where channels were cut, a gather: what is missing counts as zero, and what is `held` of the channels out is zero.
    """

    index: Tensor | None

    def __init__(self, total_in: int, total_out: int, kept_in: Channels, kept_out: Channels, held: Channels = ()) -> None:
        super().__init__()
        self.repeats = total_out // total_in
        is_whole = len(kept_in) == total_in and len(kept_out) == total_out and not held
        at_zero = set(held)
        wanted = [NOWHERE if j in at_zero else j // self.repeats for j in kept_out]
        self.register_buffer("index", None if is_whole else _gather_index(wanted, kept_in, -1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.repeat_interleave(self.repeats, dim=1) if self.index is None else _gather(x_BCHW, self.index)


def _gather_index(wanted: Sequence[int], kept: Channels, total: int) -> Tensor | None:
    """Where each wanted channel lies among the kept ones; one past their end where it is missing; None where all are in place."""
    if len(kept) == total and list(wanted) == list(range(total)):
        return None
    place = {channel: position for position, channel in enumerate(kept)}
    # On the CPU whatever the default: a skeleton on the meta device still needs its indices.
    return torch.tensor([place.get(channel, len(kept)) for channel in wanted], device="cpu")


def _gather(x_BCHW: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return x_BCHW
    return F.pad(x_BCHW, (0, 0, 0, 0, 0, 1)).index_select(1, index)


def _fours(channels: Channels) -> list[int]:
    """The channels that a pixel-unshuffle makes of each, or that a pixel-shuffle reads for each."""
    return [4 * channel + part for channel in channels for part in range(4)]


class Downsample(nn.Module):
    """Halves height and width: conv + pixel-unshuffle, or a stride-2 conv.

    The shortcut is a pixel-unshuffle, then means over adjacent channels. `totals` are the widths before any cut, `held` the
    channels out that it leaves at zero.
    """

    def __init__(
        self,
        channels_in: Channels,
        channels_out: Channels,
        totals: tuple[int, int],
        *,
        resample: str,
        shortcut: bool,
        held: Channels = (),
    ) -> None:
        super().__init__()
        self.unshuffle = resample == "unshuffle"
        if self.unshuffle:
            self.conv = nn.Conv2d(len(channels_in), len(channels_out) // 4, 3, padding=1)
        else:
            self.conv = nn.Conv2d(len(channels_in), len(channels_out), 3, stride=2, padding=1)
        self.average = Average(4 * totals[0], totals[1], _fours(channels_in), channels_out, held) if shortcut else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.conv(x_BCHW)
        if self.unshuffle:
            y = F.pixel_unshuffle(y, 2)
        return y if self.average is None else y + self.average(F.pixel_unshuffle(x_BCHW, 2))


class Upsample(nn.Module):
    """Doubles height and width: conv + pixel-shuffle, or nearest x2 + conv.

    The shortcut repeats each channel in place, then pixel-shuffles. `totals` are the widths before any cut, `held` the channels
    out that it leaves at zero.
    """

    def __init__(
        self,
        channels_in: Channels,
        channels_out: Channels,
        totals: tuple[int, int],
        *,
        resample: str,
        shortcut: bool,
        held: Channels = (),
    ) -> None:
        super().__init__()
        self.shuffle = resample == "shuffle"
        self.conv = nn.Conv2d(len(channels_in), len(channels_out) * (4 if self.shuffle else 1), 3, padding=1)
        self.duplicate = (
            Duplicate(totals[0], 4 * totals[1], channels_in, _fours(channels_out), _fours(held)) if shortcut else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.shuffle:
            y = F.pixel_shuffle(self.conv(x_BCHW), 2)
        else:
            y = self.conv(F.interpolate(x_BCHW, scale_factor=2, mode="nearest"))
        return y if self.duplicate is None else y + F.pixel_shuffle(self.duplicate(x_BCHW), 2)
