"""The schedule `plateau`: the rate falls when validation gains nothing any more.

As torch's ReduceLROnPlateau (threshold_mode="abs", cooldown 0), held to it by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Plateau:
    """The factor of the learning rate. `sign` is 1 where a higher figure is better, else -1."""

    def __init__(self, *, gamma: float, patience: int, min_gain: float, sign: int) -> None:
        self.gamma, self.patience, self.min_gain, self.sign = gamma, patience, min_gain, sign
        self.factor = 1.0
        self.best: float | None = None
        self.without_gain = 0

    def observe(self, value: float | None) -> None:
        """After a validation."""
        if value is None:
            return
        if self.best is None or self.sign * (value - self.best) > self.min_gain:
            self.best, self.without_gain = value, 0
        else:
            self.without_gain += 1
        if self.without_gain > self.patience:
            self.factor, self.without_gain = self.factor * self.gamma, 0

    def facts(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"factor": self.factor, "best": self.best, "without_gain": self.without_gain}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.factor, self.best, self.without_gain = facts["factor"], facts["best"], facts["without_gain"]
