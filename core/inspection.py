"""The images of a data set one by one: how well a model does on each, against its parent, and which are nearly the same. No torch.

An inspection is a job; its table is a blob that the job names. Leaving images out is a change of the data's deny-list, which is part
of the identity of every model trained on it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import store.jobs as jobs
from core.augmentations import source_of
from core.checks import SpecLike, checked
from core.errors import CoreError
from core.settings import Settings
from core.specs import DataSpec, InspectSpec
from dcaecore.data import open_frames
from store import JobRow, Store, get_model

TABLE_VERSION = 1
Order = Literal["worst", "regressed", "row"]
ORDERS: tuple[Order, ...] = ("worst", "regressed", "row")


@dataclass(frozen=True)
class ImageTable:
    """One row an image: `row_ids`, `psnr_db`, the parent's, and the first image that it nearly equals (empty: none)."""

    row_ids: tuple[str, ...]
    psnr_db: tuple[float, ...]
    parent_psnr_db: tuple[float, ...] | None
    """None for a model without a parent."""
    duplicate_of: tuple[str, ...]
    broken: tuple[str, ...]
    data: Mapping[str, Any]
    """The data spec that was looked at."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {"version": TABLE_VERSION, **self.__dict__}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ImageTable:
        """Reads `to_json`'s values; raises CoreError for another version."""
        if values.get("version") != TABLE_VERSION:
            raise CoreError("This table of images was made by another version.", code="table_version", next="Inspect again.")
        parents = values["parent_psnr_db"]
        return cls(
            tuple(values["row_ids"]), tuple(values["psnr_db"]), None if parents is None else tuple(parents),
            tuple(values["duplicate_of"]), tuple(values["broken"]), values["data"],
        )  # fmt: skip

    def rows(self, order: Order = "worst", *, duplicates: bool = False, limit: int | None = None) -> list[dict[str, Any]]:
        """Images as plain rows; `duplicates` leaves only those that nearly equal an earlier one.

        Raises CoreError for another order, and for `regressed` where there is no parent.
        """
        if order not in ORDERS:
            raise CoreError(f"Images cannot be ordered by {order!r}.", code="order", given=order, legal=ORDERS)
        if order == "regressed" and self.parent_psnr_db is None:
            raise CoreError("The model has no parent to have regressed from.", code="order", given=order, legal=["worst", "row"])
        found = []
        for place, row_id in enumerate(self.row_ids):
            row: dict[str, Any] = {"row": row_id, "psnr_db": self.psnr_db[place]}
            if self.parent_psnr_db is not None:
                row["change_db"] = self.psnr_db[place] - self.parent_psnr_db[place]
            row["nearly_equals"] = self.duplicate_of[place]
            if not duplicates or row["nearly_equals"]:
                found.append(row)
        key = {"worst": "psnr_db", "regressed": "change_db", "row": "row"}[order]
        found.sort(key=lambda row: row[key])
        return found[:limit]


class Inspection:
    """The part of `ModelManager` that knows single images."""

    store: Store
    settings: Settings
    _submit: Callable[..., JobRow]
    _check_size: Callable[[str, int], None]

    def inspect_images(self, model: str, spec: SpecLike = None, *, device: str | None = None) -> JobRow:
        """Submits a look at every image of a part of a data set."""
        given, row = checked(InspectSpec, spec), get_model(self.store, model)
        self._check_size(row.id, given.image_size)
        return self._submit(given, row.id, device=device, name="inspect")

    def image_table(self, model: str) -> ImageTable | None:
        """What the newest finished inspection of a model found; None where there was none."""
        ref = get_model(self.store, model).id
        found = jobs.list_jobs(self.store, ("done",), 1, operations=("inspect",), parent=ref)
        return ImageTable.from_json(json.loads(self.store.blobs.read(found[0].result["table_digest"]))) if found else None

    def without(self, data: DataSpec | Mapping[str, Any], row_ids: Sequence[str]) -> dict[str, Any]:
        """A data spec that leaves further rows out."""
        given = DataSpec.model_validate(data)
        denied = sorted({*given.deny_rows, *row_ids})
        return {**given.model_dump(), "deny_rows": tuple(denied)}

    def frame(self, data: DataSpec | Mapping[str, Any], row_id: str) -> bytes:
        """One image of a data set as PNG, at its own size. Raises CoreError for an unknown row, DataError for a broken one."""
        frames = open_frames(source_of(DataSpec.model_validate(data)), cache_folder=self.settings.data_folder)
        if row_id not in frames.row_ids:
            raise CoreError(f"The data has no row {row_id!r}.", code="row", given=row_id)
        buffer = io.BytesIO()
        frames.image(frames.row_ids.index(row_id)).save(buffer, format="PNG")
        return buffer.getvalue()


def near_duplicates(thumbnails_ND: np.ndarray, *, rms: float = 2.0, block: int = 512) -> np.ndarray:
    """`(N,)` int64: the first earlier image within `rms` grey levels (of 255) of each, or -1.

    Thumbnails are float32 `(N, D)` in [0, 255]. Memory is `block` x N, whatever N.
    """
    count, size = thumbnails_ND.shape
    centred = thumbnails_ND - thumbnails_ND.mean(axis=0)  # the still background cancels: differences keep their precision
    squares = np.square(centred).sum(axis=1)
    found = np.full(count, -1, dtype=np.int64)
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        distances = squares[rows, None] + squares[None, : rows.stop] - 2 * centred[rows] @ centred[: rows.stop].T
        near = distances <= rms**2 * size
        near &= np.arange(rows.stop)[None, :] < np.arange(start, rows.stop)[:, None]
        has = near.any(axis=1)
        found[rows][has] = near[has].argmax(axis=1)
    return found
