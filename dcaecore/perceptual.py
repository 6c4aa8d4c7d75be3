"""Figures of what people see: MS-SSIM and FLIP, per image, from 8-bit images, with nothing to download.

- MS-SSIM: Wang, Simoncelli and Bovik 2003: five scales, 11 x 11 Gaussian windows of sigma 1.5 that lie wholly in the image, means over
  windows centred on content. The coarsest scale of a smaller image than `LEAST_MS_SSIM_SIDE` holds no window: the figure is absent then.
- FLIP: Andersson et al. 2020, "FLIP: A Difference Evaluator for Alternating Images", for images seen at `PIXELS_PER_DEGREE` (a 3840 x 2160
  screen, 0.7 m wide, from 0.7 m): contrast sensitivity, HyAB colour difference in Hunt-adjusted L*a*b*, edges and points. 0 is alike,
  1 as different as can be; the figure is the mean over content pixels.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11
LEAST_MS_SSIM_SIDE = WINDOW * 2 ** (len(MS_SSIM_WEIGHTS) - 1)

PIXELS_PER_DEGREE = 0.7 * 3840 / 0.7 * math.pi / 180
_CHUNK = 16
"""Images at once: what FLIP holds in memory is some 40 float32 planes of each."""


def perceptual_scores(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """`flip`, and `ms_ssim` where the images are large enough, of uint8 `(N, H, W, 3)` over the content `(N, H, W)`; each `(N,)`."""
    found = {"flip": flip(output, target, mask)}
    if min(output.shape[1:3]) >= LEAST_MS_SSIM_SIDE:
        found["ms_ssim"] = ms_ssim(output, target, mask)
    return found


def ms_ssim(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """MS-SSIM of uint8 `(N, H, W, 3)`, `(N,)`; NaN where a scale has no window centred on content.

    Raises ValueError for sides under `LEAST_MS_SSIM_SIDE`.
    """
    if min(output.shape[1:3]) < LEAST_MS_SSIM_SIDE:
        raise ValueError(f"MS-SSIM needs sides of {LEAST_MS_SSIM_SIDE} px, not {min(output.shape[1:3])}")
    x, y = (torch.from_numpy(a).permute(0, 3, 1, 2).to(torch.float64) for a in (output, target))
    content = torch.from_numpy(mask).unsqueeze(1).to(torch.float64)
    total = torch.ones(len(x), dtype=torch.float64)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
            content = 1 - F.max_pool2d(1 - content, 2)  # content only where all four pixels are
        luminance, contrast = _ssim_parts(x, y)
        part = contrast * luminance if scale == len(MS_SSIM_WEIGHTS) - 1 else contrast
        edge = WINDOW // 2
        centre = content[:, 0, edge : content.shape[2] - edge, edge : content.shape[3] - edge]
        mean = (part.mean(1) * centre).sum((1, 2)) / centre.sum((1, 2))
        total = total * mean.clamp_min(0.0) ** weight
    return total.numpy()


def _ssim_parts(x_NCHW: Tensor, y_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure of each whole window."""
    place = torch.arange(WINDOW, dtype=x_NCHW.dtype) - WINDOW // 2
    window = torch.exp(-(place**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(a_NCHW: Tensor) -> Tensor:
        return _separable(a_NCHW, window, window)

    mean_x, mean_y = blur(x_NCHW), blur(y_NCHW)
    variances = blur(x_NCHW * x_NCHW) - mean_x**2 + blur(y_NCHW * y_NCHW) - mean_y**2
    covariance = blur(x_NCHW * y_NCHW) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1), (2 * covariance + c2) / (variances + c2)


def _separable(x_NCHW: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Each channel convolved with the outer product of two odd windows; only whole windows."""
    channels = x_NCHW.shape[1]
    x_NCHW = F.conv2d(x_NCHW, vertical.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(x_NCHW, horizontal.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def flip(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean FLIP over content of uint8 `(N, H, W, 3)` images, `(N,)` in [0, 1]; NaN for an empty mask."""
    found = []
    for start in range(0, len(output), _CHUNK):
        part = slice(start, start + _CHUNK)
        maps = flip_map(output[part], target[part])
        with np.errstate(invalid="ignore"):
            found.append((maps * mask[part]).sum(axis=(1, 2)) / mask[part].sum(axis=(1, 2)))
    return np.concatenate(found)


def flip_map(output: np.ndarray, target: np.ndarray, pixels_per_degree: float = PIXELS_PER_DEGREE) -> np.ndarray:
    """FLIP of each pixel of uint8 `(N, H, W, 3)`, float32 `(N, H, W)` in [0, 1]."""
    opponents = [_to_opponent(_to_linear(torch.from_numpy(a).permute(0, 3, 1, 2).float() / 255)) for a in (output, target)]
    seen = [_hunt(_to_lab(_from_opponent(_contrast_filtered(a, pixels_per_degree)).clamp(0, 1))) for a in opponents]
    colour = _redistributed(_hyab(*seen).pow(_COLOUR_POWER))
    first, second = (_features((a[:, :1] + 16) / 116, pixels_per_degree) for a in opponents)
    feature = torch.maximum((first[0] - second[0]).abs(), (first[1] - second[1]).abs())
    feature = (feature / math.sqrt(2)).pow(_FEATURE_POWER)[:, 0]
    return colour.pow(1 - feature).numpy()


_COLOUR_POWER, _COLOUR_CUT, _COLOUR_SHARE, _FEATURE_POWER, _FEATURE_WIDTH_DEG = 0.7, 0.4, 0.95, 0.5, 0.082
_CONTRAST = (((1.0, 0.0047),), ((1.0, 0.0053),), ((34.1, 0.04), (13.5, 0.025)))
"""Contrast sensitivity of luminance, red-green and blue-yellow: Gaussians (weight a, width b) of the paper's table 1."""

_RGB_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _RGB_TO_XYZ.sum(1).view(1, 3, 1, 1)


def _mixed(matrix: Tensor, x_NCHW: Tensor) -> Tensor:
    return torch.einsum("dc,nchw->ndhw", matrix, x_NCHW)


def _to_linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _to_opponent(linear: Tensor) -> Tensor:
    """Linear RGB to YyCxCz."""
    x, y, z = (_mixed(_RGB_TO_XYZ, linear) / _WHITE).split(1, 1)
    return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _from_opponent(opponent: Tensor) -> Tensor:
    luminance, cx, cz = opponent.split(1, 1)
    y = (luminance + 16) / 116
    return _mixed(torch.linalg.inv(_RGB_TO_XYZ), torch.cat([y + cx / 500, y, y - cz / 200], 1) * _WHITE)


def _to_lab(linear: Tensor) -> Tensor:
    ratio = _mixed(_RGB_TO_XYZ, linear) / _WHITE
    delta = 6 / 29
    x, y, z = torch.where(ratio > delta**3, ratio.clamp_min(1e-12).pow(1 / 3), ratio / (3 * delta**2) + 4 / 29).split(1, 1)
    return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _hunt(lab: Tensor) -> Tensor:
    """Chroma grows with lightness (the Hunt effect)."""
    return torch.cat([lab[:, :1], 0.01 * lab[:, :1] * lab[:, 1:]], 1)


def _hyab(first: Tensor, second: Tensor) -> Tensor:
    away = first - second
    return away[:, 0].abs() + away[:, 1:].norm(dim=1)


def _redistributed(distance: Tensor) -> Tensor:
    """Maps small distances to most of [0, 1] and leaves the rest to large ones; the largest is that of green from blue."""
    green, blue = (_hunt(_to_lab(torch.tensor(c).view(1, 3, 1, 1))) for c in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    most = float(_hyab(green, blue).pow(_COLOUR_POWER))
    cut = _COLOUR_CUT * most
    high = _COLOUR_SHARE + (distance - cut) / (most - cut) * (1 - _COLOUR_SHARE)
    return torch.where(distance < cut, _COLOUR_SHARE / cut * distance, high).clamp(0, 1)


@lru_cache(maxsize=8)
def _contrast_windows(pixels_per_degree: float) -> tuple[tuple[tuple[float, Tensor], ...], ...]:
    """(weight, normalised 1-D Gaussian) of each opponent channel; weights of a channel sum to one."""
    widest = max(width for channel in _CONTRAST for _, width in channel)
    radius = math.ceil(3 * math.sqrt(widest / (2 * math.pi**2)) * pixels_per_degree)
    place = torch.arange(-radius, radius + 1, dtype=torch.float64) / pixels_per_degree
    made = []
    for channel in _CONTRAST:
        parts = []
        for weight, width in channel:
            line = torch.exp(-(math.pi**2) * place**2 / width)
            parts.append((weight * math.sqrt(math.pi / width) * float(line.sum()) ** 2, (line / line.sum()).float()))
        total = sum(mass for mass, _ in parts)
        made.append(tuple((mass / total, line) for mass, line in parts))
    return tuple(made)


def _contrast_filtered(opponent: Tensor, pixels_per_degree: float) -> Tensor:
    channels = []
    for channel, parts in zip(opponent.split(1, 1), _contrast_windows(pixels_per_degree), strict=True):
        padded = _padded(channel, len(parts[0][1]) // 2)
        channels.append(sum((mass * _separable(padded, line, line) for mass, line in parts), torch.zeros_like(channel)))
    return torch.cat(channels, 1)


def _padded(x_NCHW: Tensor, radius: int) -> Tensor:
    return F.pad(x_NCHW, (radius,) * 4, mode="replicate")


@lru_cache(maxsize=8)
def _feature_windows(pixels_per_degree: float) -> tuple[Tensor, Tensor, Tensor]:
    """1-D Gaussian, and its first and second derivatives whose positive parts sum to 1 and negative ones to -1."""
    sigma = 0.5 * _FEATURE_WIDTH_DEG * pixels_per_degree
    radius = math.ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    gauss = torch.exp(-(place**2) / (2 * sigma**2))

    def balanced(line: Tensor) -> Tensor:
        return torch.where(line > 0, line / line.clamp_min(0).sum(), line / -line.clamp_max(0).sum()).float()

    return (gauss / gauss.sum()).float(), balanced(-place * gauss), balanced((place**2 / sigma**2 - 1) * gauss)


def _features(grey: Tensor, pixels_per_degree: float) -> tuple[Tensor, Tensor]:
    """How much of an edge and of a point each pixel of `(N, 1, H, W)` in [0, 1] is."""
    gauss, edge, point = _feature_windows(pixels_per_degree)
    padded = _padded(grey, len(gauss) // 2)
    return tuple(torch.hypot(_separable(padded, gauss, line), _separable(padded, line, gauss)) for line in (edge, point))  # type: ignore[return-value]
