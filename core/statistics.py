"""Intervals and paired tests over images, in numpy: a page reads them in milliseconds, without scipy.

- The interval of a mean is a 95 % bootstrap interval, bias-corrected and accelerated (Efron 1987).
- A difference of two models is paired by image. Its test flips the signs of the differences (Fisher's permutation test of a mean of
  zero): each of the 2^n flips where there are few, else `FLIPS` drawn ones. p-values of several models against one reference are
  corrected together (Holm 1979). The effect size is Cohen's d of the differences: their mean over their standard deviation.
- Fewer images than `LEAST_IMAGES` carry neither: what is missing is said instead.

Draws come from a fixed seed, so the same figures have the same interval every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
LEAST_IMAGES = 8
"""With n images the smallest two-sided p of a sign-flip test is 2 / 2^n; under 8 a bootstrap of a mean says little too."""
RESAMPLES = 4000
FLIPS = 9999
EXACT_BITS = 13
_SEED = 20260101
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A mean over `count` images with its interval; the ends are None where there are too few images."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A model's mean minus the reference's, over the same images. All but `mean` and `count` are None where there are too few."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    effect_size: float | None
    count: int

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: test and interval both say so."""
        if self.p_value is None or self.low is None or self.high is None:
            return False
        return self.p_value < 1 - CONFIDENCE and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Interval:
    """The mean of the values that exist (NaN: absent), with its bootstrap interval. Raises ValueError where there is none."""
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    if len(found) == 0:
        raise ValueError("no image has this figure")
    mean = float(found.mean())
    if len(found) < LEAST_IMAGES:
        return Interval(mean, None, None, len(found))
    low, high = _bca(found)
    return Interval(mean, low, high, len(found))


def difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Paired difference over the images that both have; raises ValueError for lists of two lengths, or without such an image."""
    a, b = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs")
    away = (a - b)[np.isfinite(a) & np.isfinite(b)]
    if len(away) == 0:
        raise ValueError("no image has this figure in both")
    mean = float(away.mean())
    if len(away) < LEAST_IMAGES:
        return Difference(mean, None, None, None, None, len(away))
    low, high = _bca(away)
    spread = float(away.std(ddof=1))
    effect = 0.0 if mean == 0 else float("inf") * np.sign(mean) if spread == 0 else mean / spread
    return Difference(mean, low, high, sign_flip_p(away), float(effect), len(away))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of a family of tests, corrected so that the chance of one false find among them stays what it says (Holm 1979)."""
    corrected, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = running
    return {name: corrected[name] for name in p_values}


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of "the differences scatter around zero": the share of sign flips whose mean is at least as far from zero."""
    total = abs(float(differences.sum()))
    # Sums of the same numbers in another order differ in their last digits.
    slack = 1e-9 * float(np.abs(differences).sum())
    signs = _signs(len(differences))
    extreme = int((np.abs(signs @ differences) >= total - slack).sum())
    return extreme / len(signs) if len(differences) <= EXACT_BITS else (extreme + 1) / (len(signs) + 1)


@lru_cache(maxsize=4)
def _signs(count: int) -> np.ndarray:
    """Rows of +1 and -1: all of them for few images, else drawn ones."""
    if count <= EXACT_BITS:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    else:
        bits = np.random.default_rng(_SEED).integers(0, 2, (FLIPS, count))
    return bits * 2.0 - 1.0


@lru_cache(maxsize=4)
def _shares(count: int) -> np.ndarray:
    """`(RESAMPLES, count)`: how large a part of each resample an image is."""
    drawn = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn / count


def _bca(values: np.ndarray) -> tuple[float, float]:
    """Ends of the BCa interval of the mean."""
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return mean, mean
    means = np.sort(_shares(len(values)) @ values)
    below = (np.searchsorted(means, mean, "left") + np.searchsorted(means, mean, "right")) / 2 / len(means)
    bias = _NORMAL.inv_cdf(min(max(float(below), 1e-6), 1 - 1e-6))
    # The jackknife means of a mean are linear in the values, so the acceleration needs no loop.
    away = values - mean
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    ends = []
    for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        z = bias + _NORMAL.inv_cdf(share)
        ends.append(float(np.quantile(means, _NORMAL.cdf(bias + z / (1 - acceleration * z)))))
    return ends[0], ends[1]
