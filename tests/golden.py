"""The losses of 20 seeded steps on the CPU: `.venv/bin/python -m tests.golden` writes them anew, where a change of them is meant.

Masks, a moving average, clipping, warm-up and cosine, batches that cross the end of an epoch. Processors differ in the last bits, so a
test holds them to 1e-3 (relative).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from dcaecore import NullCallbacks, TrainSettings, train
from tests.formats import training, weights

FILE = Path(__file__).parent / "assets" / "losses" / "micro.json"
SETTINGS = TrainSettings(
    n_epochs=4, steps_per_epoch=5, warmup_epochs=1, init_lr=5e-3, ema_decay=0.8, reconstruction_loss="l1+mse", eval_interval=2
)


class Keeps(NullCallbacks):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["loss"])


def losses() -> list[float]:
    """Of each of the 20 steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, stream, pinned = training(Path(folder))
        told = Keeps()
        train(model, SETTINGS, stream, pinned, masks=weights()[1], callbacks=told)
    torch.set_num_threads(threads)
    return told.losses


if __name__ == "__main__":
    FILE.write_text(json.dumps(losses(), indent=1) + "\n")
