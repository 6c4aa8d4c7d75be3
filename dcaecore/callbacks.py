"""How a training reports and is steered."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from dcaecore.image_losses import ImageLosses
    from dcaecore.metrics import ImageScores


class TrainCallbacks(Protocol):
    """What a training tells, and asks."""

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        """Asked before each step."""

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        """Called once a pause is checkpointed; blocks until the run goes on, ends, or must free the device."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """After each step (counted from 1)."""

    def on_eval(self, step: int, scores: ImageScores) -> None:
        """After each validation; step 0 is the model as it came."""

    def on_layers(self, step: int, figures: dict[str, float]) -> None:
        """After each validation where `layer_stats` is on; see `dcaecore.layer_stats`."""

    def on_image_losses(self, step: int, losses: ImageLosses) -> None:
        """How each training image has fared: after each validation, and at the end."""

    def on_checkpoint(self, path: Path, step: int, why: str) -> None:
        """After a checkpoint is durable; `why` is pause, cancel, asked, interval or every (the `keep_every`-th epoch)."""

    def spared(self) -> Collection[str]:
        """Names of checkpoints that are not to be cleaned away."""

    def log(self, level: str, message: str) -> None:
        """A line for people; level as in `logging`."""


class NullCallbacks:
    """Callbacks that do nothing: runs to the end."""

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        return "run"

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        return "run"

    def on_step(self, step: int, metrics: dict[str, float]) -> None: ...

    def on_eval(self, step: int, scores: ImageScores) -> None: ...

    def on_layers(self, step: int, figures: dict[str, float]) -> None: ...

    def on_image_losses(self, step: int, losses: ImageLosses) -> None: ...

    def on_checkpoint(self, path: Path, step: int, why: str) -> None: ...

    def spared(self) -> Collection[str]:
        return ()

    def log(self, level: str, message: str) -> None: ...
