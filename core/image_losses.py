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
from core.augmentations import source_of
from core.errors import CoreError
from core.settings import Settings
from core.specs import DataSpec
from dcaecore.data import open_frames
from store import Store, image_tags

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

    def rows(self, order: LossOrder = "worst", *, limit: int | None = None) -> list[dict[str, Any]]:
        """Images as plain rows: worst running mean first, or least gained since the first draw, or most above its running mean, ...

        Raises CoreError for another order.
        """
        if order not in LOSS_ORDERS:
            raise CoreError(f"Images cannot be ordered by {order!r}.", code="order", given=order, legal=LOSS_ORDERS)
        f = {name: values.astype(np.float64) for name, values in self.figures.items()}
        keys = {
            "worst": -f["mean"], "least gained": f["first"] - f["last"], "risen": f["mean"] - f["last"], "least drawn": f["count"],
            "row": np.arange(len(self.row_ids)),
        }  # fmt: skip
        found: list[dict[str, Any]] = []
        for place in np.argsort(keys[order], kind="stable")[:limit]:
            whole = {name: int(self.figures[name][place]) for name in ("step", "count")}
            losses = {f"{name}_loss": float(self.figures[name][place]) for name in ("mean", "last", "first")}
            found.append({"row": self.row_ids[place], **losses, **whole})
        return found


def tagged(
    rows: Sequence[Mapping[str, Any]], tags: Mapping[str, Sequence[str]], containing: str = "", limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a list of images with the words on them, only those whose id or words contain a text; `limit` of them."""
    with_words = ({**row, "tags": ", ".join(tags.get(str(row["row"]), ()))} for row in rows)
    return [row for row in with_words if containing in row["row"] or containing in row["tags"]][:limit]


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
    """The part of `ModelManager` that knows how training images fared, and what people say of them."""

    store: Store
    settings: Settings

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

    def tag_images(self, data: DataSpec | Mapping[str, Any], row_ids: Sequence[str], tag: str, *, remove: bool = False) -> None:
        """Puts a word on images of a data set, or takes it off. They keep it in every list, whatever the model.

        Raises CoreError for an unknown row, StoreError for a word that cannot be one, DataError for data that cannot be opened.
        """
        if not remove:  # a word may be taken off an image that is gone
            image_tags.checked_tag(tag)
            given = DataSpec.model_validate(data)
            found = open_frames(source_of(given), cache_folder=self.settings.data_folder).row_ids
            unknown = sorted(set(row_ids) - set(found))
            if unknown:
                raise CoreError(
                    f"{given.location} has no row {unknown[0]!r}.", code="row", given=unknown[:5],
                    legal=f"one of its {len(found)} row ids: {found[0]} to {found[-1]}",
                )  # fmt: skip
        change = image_tags.untag_rows if remove else image_tags.tag_rows
        change(self.store, _source_name(data), row_ids, tag)

    def image_tags(self, data: DataSpec | Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Row id -> its words, of the images of a data set that have any."""
        return image_tags.row_tags(self.store, _source_name(data))


def _source_name(data: DataSpec | Mapping[str, Any]) -> str:
    """What a data set is called among tags: the same rows whatever the split, the column or the deny-list."""
    given = DataSpec.model_validate(data)
    return f"{given.kind}:{given.location}" + (f"@{given.revision}" if given.revision else "")
