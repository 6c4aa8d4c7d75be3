"""What the curves of a training say: over-fitting, a plateau, a rate that is too high; with what to try. Plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_VALIDATIONS = 6
LEAST_STEPS = 60
FLAT_DB = 0.05
"""A gain over the last third of the validations below this is a plateau."""
WORSE_DB = 0.15
"""Validation this far below its best, while the training loss goes on falling, is over-fitting."""


@dataclass(frozen=True)
class Hint:
    """A flag and what to try."""

    flag: str
    text: str


def curve_hints(losses: Sequence[float], psnr_db: Sequence[float]) -> list[Hint]:
    """`losses` of each step and validation PSNR (dB) of each validation after a step; no hint where they are too short."""
    found = []
    thirds = _thirds(losses) if len(losses) >= LEAST_STEPS else None
    if thirds is not None and thirds[2] > 1.5 * min(thirds[:2]):
        found.append(Hint("rising loss", "The training loss rises: lower init_lr, warm up longer, or clip the gradient."))
    if len(psnr_db) < LEAST_VALIDATIONS:
        return found
    best = max(range(len(psnr_db)), key=psnr_db.__getitem__)
    lost = psnr_db[best] - psnr_db[-1]
    since = len(psnr_db) - 1 - best
    falls = thirds is not None and thirds[2] < 0.98 * thirds[1]
    if lost > WORSE_DB and since >= 3 and falls:
        found.append(
            Hint(
                "over-fitting",
                f"Validation has lost {lost:.2f} dB since its best, {since} validations ago, while the training loss falls: add "
                "images or augmentations, raise weight_decay, or end early (patience). The best weights are kept.",
            )
        )
        return found
    third = len(psnr_db) // 3
    gain = max(psnr_db[-third:]) - max(psnr_db[:-third])
    if gain < FLAT_DB:
        found.append(
            Hint(
                "plateau",
                f"The last {third} validations gained {max(gain, 0.0):.2f} dB: let the rate fall (schedule plateau, or a lower "
                "min_lr), raise foreground_weight, learn from the baseline (teacher), or stop here.",
            )
        )
    return found


def _thirds(values: Sequence[float]) -> tuple[float, float, float]:
    """Means of the three thirds of a curve."""
    size = len(values) // 3
    parts = (values[:size], values[size : 2 * size], values[2 * size :])
    first, second, third = (sum(part) / len(part) for part in parts)
    return first, second, third
