"""How each training image fared while a retraining ran, and images that are drawn more often in the next one. No torch.

One compact file for each job, written at validations and at the end: the loss at an image's first draw, at its last one, the running
mean, the step of the last draw and how often it was drawn (rules: `dcaecore.image_losses`). Images never drawn are left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import store.jobs as jobs
from core.errors import CoreError
from store import Store

FILE_NAME = "image_losses.npz"
TABLE_VERSION = 1
FIGURES = ("first", "last", "mean", "step", "count")
LossOrder = Literal["worst", "least gained", "risen", "least drawn", "row"]
LOSS_ORDERS: tuple[LossOrder, ...] = ("worst", "least gained", "risen", "least drawn", "row")


@dataclass(frozen=True)
class LossTable:
    """One entry an image that was drawn: its row id, and `(N,)` figures by name."""

    row_ids: tuple[str, ...]
    figures: Mapping[str, np.ndarray]

    def rows(self, order: LossOrder = "worst", *, containing: str = "", limit: int | None = None) -> list[dict[str, Any]]:
        """Images as plain rows: worst running mean, least gained since the first draw, most risen over the running mean, ... first.

        `containing` leaves only row ids with that text. Raises CoreError for another order.
        """
        if order not in LOSS_ORDERS:
            raise CoreError(f"Images cannot be ordered by {order!r}.", code="order", given=order, legal=LOSS_ORDERS)
        f = {name: values.astype(np.float64) for name, values in self.figures.items()}
        keys = {
            "worst": -f["mean"], "least gained": f["first"] - f["last"], "risen": f["mean"] - f["last"], "least drawn": f["count"],
            "row": np.arange(len(self.row_ids)),
        }  # fmt: skip
        found: list[dict[str, Any]] = []
        for place in np.argsort(keys[order], kind="stable"):
            if containing in self.row_ids[place]:
                whole = {name: int(self.figures[name][place]) for name in ("step", "count")}
                losses = {f"{name}_loss": float(self.figures[name][place]) for name in ("mean", "last", "first")}
                found.append({"row": self.row_ids[place], **losses, **whole})
            if limit is not None and len(found) == limit:
                break
        return found


def write_losses(folder: Path, row_ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a job's file anew, whole or not at all; `arrays` are `(rows of the source,)`."""
    drawn = np.flatnonzero(arrays["count"])
    names = np.frombuffer("\n".join(row_ids[int(row)] for row in drawn).encode(), dtype=np.uint8)
    kept: dict[str, Any] = {name: arrays[name][drawn] for name in FIGURES}
    partial = folder / f".{FILE_NAME}.partial"
    with partial.open("wb") as file:
        np.savez_compressed(file, version=TABLE_VERSION, row_ids=names, **kept)
    os.replace(partial, folder / FILE_NAME)


def read_losses(folder: Path) -> LossTable | None:
    """A job's file; None where it has none yet. Raises CoreError for another version."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as found:
        if int(found["version"]) != TABLE_VERSION:
            raise CoreError("This table of images was made by another version.", code="table_version", next="Train again.")
        names = found["row_ids"].tobytes().decode()
        return LossTable(tuple(names.split("\n")) if names else (), {name: found[name] for name in FIGURES})


class ImageFates:
    """The part of `ModelManager` that knows how training images fared."""

    store: Store

    def image_losses(self, ref: str) -> LossTable | None:
        """The images of a retraining so far; None before its first validation after a step."""
        job = jobs.get_job(self.store, ref)
        if job.operation != "retrain":
            raise CoreError(f"{job.name} is no retraining.", code="operation", given=job.operation, legal="retrain")
        table = read_losses(self.store.job_folder(job.id))
        return table if table is not None and table.row_ids else None

    def weighted(self, spec: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
        """Retrain values that also draw these rows so many times as often as others (1: alike again)."""
        kept = {str(row): float(weight) for row, weight in spec.get("row_weights") or ()}
        merged = {row: weight for row, weight in {**kept, **weights}.items() if weight != 1.0}
        return {**spec, "row_weights": tuple(sorted(merged.items()))}
