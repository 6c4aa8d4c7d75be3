"""When a training ends before its last step: nothing gained for a while, good enough, or out of time.

All three travel in the checkpoint, so a resumed run stops where the uninterrupted one does; only the seconds depend on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class StopSettings(Protocol):
    """The fields of a training's settings that end it early."""

    @property
    def patience(self) -> int: ...
    @property
    def min_gain(self) -> float: ...
    @property
    def stop_value(self) -> float | None: ...
    @property
    def max_seconds(self) -> float: ...


class StopRule:
    """Watches validations and the clock. `sign` is 1 where a higher figure is better, else -1."""

    def __init__(self, settings: StopSettings, sign: int) -> None:
        self.settings, self.sign = settings, sign
        self.reference: float | None = None
        """The figure that the next one must beat by `min_gain`."""
        self.without_gain = 0
        """Validations since it was set."""
        self.seconds = 0.0
        """Of training, over all attempts; pauses do not count."""

    def observe(self, value: float | None) -> str:
        """After a validation: why the training ends now, or nothing."""
        if value is None:
            return ""
        target = self.settings.stop_value
        if target is not None and self.sign * value >= self.sign * target:
            return f"as good as asked for ({value:.4g} against {target:.4g})"
        if self.reference is None or self.sign * (value - self.reference) > self.settings.min_gain:
            self.reference, self.without_gain = value, 0
        else:
            self.without_gain += 1
        if self.settings.patience and self.without_gain >= self.settings.patience:
            return f"no gain in {self.without_gain} validations"
        return ""

    def spend(self, seconds: float) -> str:
        """After a step that took so long: why the training ends now, or nothing."""
        self.seconds += seconds
        limit = self.settings.max_seconds
        return f"the {limit:g} s of training are spent" if limit and self.seconds >= limit else ""

    def facts(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"reference": self.reference, "without_gain": self.without_gain, "seconds": self.seconds}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.reference, self.without_gain, self.seconds = facts["reference"], facts["without_gain"], facts["seconds"]
