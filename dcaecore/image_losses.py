"""How each training image has fared: first, last and running mean of its loss, and at which step. 20 bytes an image, however long it runs.

The loss is that of the step in which the image was drawn, before the step moved the weights: reconstruction alone, augmented as drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MEMORY = 0.3
"""Weight of the newest loss in the running mean; the first one counts in full."""
FIELDS = {"first": np.float32, "last": np.float32, "mean": np.float32, "step": np.int32, "count": np.int32}


class ImageLosses:
    """Figures by row of the source. `step` is that of the last draw (from 1; 0: never drawn), `count` how often it was drawn."""

    def __init__(self, num_rows: int) -> None:
        self.arrays: dict[str, np.ndarray] = {name: np.zeros(num_rows, dtype=kind) for name, kind in FIELDS.items()}

    def observe(self, step: int, rows: Sequence[int], losses: Sequence[float]) -> None:
        """After a step (counted from 1). A row that a batch holds twice is counted twice."""
        a = self.arrays
        for row, loss in zip(rows, losses, strict=True):
            if a["count"][row] == 0:
                a["first"][row] = a["mean"][row] = loss
            else:
                a["mean"][row] += MEMORY * (loss - a["mean"][row])
            a["last"][row], a["step"][row] = loss, step
            a["count"][row] += 1

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """From a checkpoint; one without them (of an earlier version) leaves all images undrawn."""
        for name in self.arrays:
            if name in arrays:
                self.arrays[name] = np.array(arrays[name])
