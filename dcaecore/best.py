"""The best weights of a training so far, by a figure of its validations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dcaecore.errors import ConfigError
from dcaecore.pinned import PinnedImages

HIGHER_IS_BETTER = {
    "psnr_db": True,
    "foreground_psnr_db": True,
    "ssim": True,
    "accuracy": True,
    "loss": False,
    "l1": False,
}


class BestWeights:
    """Remembers them. `metric` is the figure asked for, or PSNR where the images have no foreground (`told` is called with that)."""

    def __init__(self, metric: str, pinned: PinnedImages, told: Callable[[str, str], None]) -> None:
        if metric not in HIGHER_IS_BETTER:
            raise ConfigError(f"There is no figure {metric!r}.", given=metric, legal=sorted(HIGHER_IS_BETTER))
        if metric == "foreground_psnr_db" and (pinned.foreground is None or not pinned.foreground.any()):
            metric = "psnr_db"
            reason = pinned.foreground_reason or "nothing moves in the pinned images"
            told("warning", f"No foreground figure ({reason}): best is by PSNR.")
        self.metric = metric
        self.sign = 1 if HIGHER_IS_BETTER[metric] else -1
        self.state: dict[str, Tensor] = {}
        self.value: float | None = None
        self.step = 0

    def observe(self, step: int, value: float | None, weights: Callable[[], dict[str, Tensor]]) -> None:
        """After a validation; `weights` is called where they are the best so far."""
        if value is not None and (self.value is None or self.sign * value > self.sign * self.value):
            self.value, self.step, self.state = value, step, weights()

    def facts(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best_value": self.value, "best_step": self.step}

    def restore(self, state: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.state, self.value, self.step = state, facts["best_value"], facts["best_step"]
