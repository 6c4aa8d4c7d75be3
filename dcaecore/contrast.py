"""How much there is to see in an image: its RMS contrast, by which training may draw images and validation figures are told apart."""

from __future__ import annotations

import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
SLICES = ("low", "middle", "high")


def rms_contrast(image: np.ndarray, content: np.ndarray) -> float:
    """Standard deviation of the luminance (Rec. 601, in [0, 1]) over the content pixels of uint8 `(H, W, 3)` (Peli 1990)."""
    luma = image.astype(np.float32) @ _LUMA / 255.0
    return float(luma[content].std()) if content.any() else 0.0


def drawn_by(values: np.ndarray, power: float, *, limit: float = 20.0) -> np.ndarray:
    """Weights `(N,)` of how often images are drawn: value over mean value to this power, within 1 / limit and limit."""
    mean = float(values.mean())
    if mean <= 0:
        return np.ones(len(values))
    weights: np.ndarray = np.clip((values / mean) ** power, 1.0 / limit, limit)
    return weights


def slice_rows(values: np.ndarray) -> dict[str, np.ndarray]:
    """Places of the images of low, middle and high value, a third each as far as that goes; none for fewer than three images."""
    if len(values) < len(SLICES):
        return {}
    order = np.argsort(values, kind="stable")
    return {name: np.sort(part) for name, part in zip(SLICES, np.array_split(order, len(SLICES)), strict=True)}
