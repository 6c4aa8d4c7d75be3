"""Quality figures of reconstructions, per image, on 8-bit values and content pixels only.

PSNR, MSE and L1 count every content pixel of an image alike; SSIM is Wang et al. 2004 with an 11 x 11 Gaussian window of sigma
1.5 (as torchmetrics'), averaged over windows that are centred on content; "accuracy" is the share of pixels within 8/255 in every
channel. A perfect image has no finite PSNR: it counts as MAX_PSNR_DB, so that means stay numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcaecore.losses import ReconstructionLoss
from dcaecore.pinned import PinnedImages, to_uint8

MAX_PSNR_DB = 100.0
ACCURACY_STEP = 8


@dataclass(frozen=True)
class ImageScores:
    """Figures of N images: `per_image[metric]` is `(N,)`, `means[metric]` its mean over the images that have it."""

    per_image: dict[str, np.ndarray]
    means: dict[str, float]
    reconstructions: np.ndarray
    """uint8 `(N, S, S, 3)`."""


def psnr_db(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """PSNR of uint8 `(N, H, W, 3)` images over the pixels of bool `(N, H, W)`, `(N,)` in dB; NaN for an empty mask."""
    square = np.square(output.astype(np.float32) - target.astype(np.float32)).mean(axis=-1, dtype=np.float64)
    count = mask.sum(axis=(1, 2))
    total = (square * mask).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 10 * np.log10(255.0**2 * count / total)
    return np.where(count == 0, np.nan, np.minimum(value, MAX_PSNR_DB))


def accuracy(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of masked pixels within 8/255 in every channel, `(N,)` in [0, 1]."""
    close = (np.abs(output.astype(np.int16) - target.astype(np.int16)) <= ACCURACY_STEP).all(axis=-1)
    return (close & mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1)


def ssim(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """SSIM of uint8 `(N, H, W, 3)` images, mean over channels and windows centred on masked pixels, `(N,)`."""
    x, y = (torch.from_numpy(a).permute(0, 3, 1, 2).to(torch.float64) for a in (output, target))
    window = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    x, y = (F.pad(a, (5, 5, 5, 5), mode="reflect") for a in (x, y))

    def blur(a: Tensor) -> Tensor:
        channels = a.shape[1]
        a = F.conv2d(a, window.view(1, 1, 11, 1).expand(channels, 1, 11, 1), groups=channels)
        return F.conv2d(a, window.view(1, 1, 1, 11).expand(channels, 1, 1, 11), groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    full = (top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(1).numpy()
    return (full * mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1)


def score_images(output: np.ndarray, pinned: PinnedImages) -> dict[str, np.ndarray]:
    """All per-image figures of uint8 reconstructions of the pinned images."""
    difference = np.abs(output.astype(np.float32) - pinned.images.astype(np.float32)) / 127.5
    count = np.maximum(pinned.content.sum(axis=(1, 2)), 1)
    return {
        **score_psnr(output, pinned),
        "ssim": ssim(output, pinned.images, pinned.content),
        "accuracy": accuracy(output, pinned.images, pinned.content),
        "l1": (difference.mean(-1) * pinned.content).sum(axis=(1, 2)) / count,
        "mse": (np.square(difference).mean(-1) * pinned.content).sum(axis=(1, 2)) / count,
    }


def score_psnr(output: np.ndarray, pinned: PinnedImages) -> dict[str, np.ndarray]:
    """PSNR of uint8 reconstructions of the pinned images, and in the foreground where they have one."""
    scores = {"psnr_db": psnr_db(output, pinned.images, pinned.content)}
    if pinned.foreground is not None:
        scores["foreground_psnr_db"] = psnr_db(output, pinned.images, pinned.foreground)
    return scores


def means(per_image: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of each figure over the images that have it; a figure that no image has is left out."""
    return {key: float(np.nanmean(values)) for key, values in per_image.items() if np.isfinite(values).any()}


@torch.inference_mode()
def evaluate_images(
    model: Callable[[Tensor], Tensor],
    pinned: PinnedImages,
    *,
    batch_size: int = 8,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    loss: ReconstructionLoss | None = None,
) -> ImageScores:
    """Reconstructs the pinned images and scores them. `loss`, if given, adds the training loss of each image."""
    outputs, losses = [], []
    for start in range(0, len(pinned), batch_size):
        x = pinned.tensor(start, start + batch_size).to(device)
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            y = model(x)
        outputs.append(to_uint8(y))
        if loss is not None:
            moving = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool, device=device)
            if pinned.foreground is not None:
                moving = torch.from_numpy(pinned.foreground[start : start + batch_size]).unsqueeze(1).to(device)
            for i in range(len(x)):
                losses.append(float(loss(y[i : i + 1], x[i : i + 1], moving[i : i + 1])[0]))
    output = np.concatenate(outputs)
    per_image = score_images(output, pinned)
    if loss is not None:
        per_image["loss"] = np.array(losses)
    return ImageScores(per_image, means(per_image), output)


def latent_drift(z: Tensor, reference: Tensor) -> Tensor:
    """Distance of each image's latents from another encoder's over their norm, `(B,)`: 0 is the same latent space."""
    away, size = (z - reference).float().flatten(1), reference.float().flatten(1)
    return away.norm(dim=1) / size.norm(dim=1).clamp_min(1e-12)


def median_scores(pinned: PinnedImages) -> dict[str, float]:
    """PSNR that the median frame alone would score: the floor that a model must be far above."""
    return {} if pinned.median is None else means(score_psnr(pinned.median, pinned))
