"""MS-SSIM against torchmetrics, FLIP against its authors' own program, and what padding does to them: nothing."""

from __future__ import annotations

import flip_evaluator
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from dcaecore.perceptual import LEAST_MS_SSIM_SIDE, PIXELS_PER_DEGREE, flip, flip_map, ms_ssim, perceptual_scores


def pair(height: int, width: int, noise: float = 12.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth shapes with edges, and a noisy, slightly blurred copy; uint8 `(3, H, W, 3)` each."""
    rng = np.random.default_rng(seed)
    target = np.stack([gaussian_filter(rng.normal(size=(height, width, 3)), (4, 4, 0)) * 900 + 120 for _ in range(3)])
    target[:, 20:40, 30:60] = (240, 200, 20)
    output = gaussian_filter(target, (0, 1, 1, 0)) + rng.normal(size=target.shape) * noise
    return np.clip(output, 0, 255).astype(np.uint8), np.clip(target, 0, 255).astype(np.uint8)


def by_hand(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Means of contrast x structure of four scales, and of the SSIM of the fifth, of one channel, by 2-D convolutions in scipy."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    parts = []
    for _ in range(5):
        mx, my, xx, yy, xy = (convolve2d(a, window, mode="valid") for a in (x, y, x * x, y * y, x * y))
        structure = (2 * (xy - mx * my) + 58.5225) / (xx - mx**2 + yy - my**2 + 58.5225)
        luminance = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
        parts.append((structure * luminance if len(parts) == 4 else structure).mean())
        x, y = (a[: a.shape[0] // 2 * 2, : a.shape[1] // 2 * 2].reshape(a.shape[0] // 2, 2, -1, 2).mean((1, 3)) for a in (x, y))
    return np.array(parts)


@pytest.mark.parametrize(("height", "width"), [(192, 192), (177, 240)])
def test_ms_ssim_equals_torchmetrics(height, width):
    output, target = pair(height, width)
    # Of one image: theirs takes two seconds for each in float64.
    x, y = (torch.from_numpy(a[:1]).permute(0, 3, 1, 2).double() for a in (output, target))
    theirs = multiscale_structural_similarity_index_measure(x, y, data_range=255.0, reduction="none", normalize="relu")
    full = np.ones(target.shape[:3], dtype=bool)
    # torchmetrics counts windows over the (reflected) border in the coarsest luminance; the paper's lie wholly in the image.
    assert ms_ssim(output, target, full)[:1] == pytest.approx(theirs.numpy(), abs=2e-5)
    plain = [
        np.mean([by_hand(output[i, ..., c].astype(float), target[i, ..., c].astype(float)) for c in range(3)], 0)
        for i in range(3)
    ]
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    assert ms_ssim(output, target, full) == pytest.approx([np.prod(parts**weights) for parts in plain], abs=1e-9)
    assert ms_ssim(target, target, full) == pytest.approx(np.ones(3))


def test_ms_ssim_is_absent_where_its_coarsest_scale_has_no_window():
    output, target = pair(128, 128)
    full = np.ones(target.shape[:3], dtype=bool)
    assert set(perceptual_scores(output, target, full)) == {"flip"}
    with pytest.raises(ValueError, match="176"):
        ms_ssim(output, target, full)
    output, target = pair(LEAST_MS_SSIM_SIDE, LEAST_MS_SSIM_SIDE)
    full = np.ones(target.shape[:3], dtype=bool)
    assert set(perceptual_scores(output, target, full)) == {"flip", "ms_ssim"}
    assert np.isnan(ms_ssim(output, target, full & False)).all()


@pytest.mark.parametrize("noise", [2.0, 12.0, 60.0])
def test_flip_equals_its_authors_program(noise):
    output, target = pair(96, 128, noise)
    full = np.ones(target.shape[:3], dtype=bool)
    ours, means = flip_map(output, target), flip(output, target, full)
    for i in range(3):
        theirs, mean, told = flip_evaluator.evaluate(
            target[i].astype(np.float32) / 255, output[i].astype(np.float32) / 255, "LDR", applyMagma=False
        )
        assert told["ppd"] == pytest.approx(PIXELS_PER_DEGREE, rel=1e-4)
        assert np.abs(ours[i] - theirs[..., 0]).max() < 2e-3
        assert means[i] == pytest.approx(mean, abs=2e-4)


def test_flip_of_like_and_of_opposite_images():
    white, black = np.full((1, 32, 32, 3), 255, np.uint8), np.zeros((1, 32, 32, 3), np.uint8)
    full = np.ones((1, 32, 32), dtype=bool)
    assert flip(white, white, full)[0] == 0.0
    theirs = flip_evaluator.evaluate(white[0] / np.float32(255), black[0] / np.float32(255), "LDR")[1]
    assert flip(black, white, full)[0] == pytest.approx(theirs, abs=1e-4) and theirs > 0.9
    assert np.isnan(flip(white, white, full & False)).all()


def test_only_content_counts():
    output, target = pair(192, 192)
    content = np.ones(target.shape[:3], dtype=bool)
    content[:, :, 160:] = False
    spoiled = output.copy()
    spoiled[:, :, 182:] = 255 - target[:, :, 182:]
    # Windows reach a few pixels over the border of the content; what lies beyond them changes nothing.
    assert np.array_equal(flip(output, target, content), flip(spoiled, target, content))
    assert not np.array_equal(flip(output, target, content | True), flip(spoiled, target, content | True))
