"""From a data spec to opened, cached, pinned images; shared by the operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.augmentations import source_of
from core.settings import Settings
from core.specs import DataSpec
from dcaecore import Frames, ImageCache, JoinedFrames, open_frames, split_rows


@dataclass
class Part:
    """One part of a data set: its rows and the decoded images that they share."""

    cache: ImageCache
    rows: np.ndarray

    @property
    def frames(self) -> Frames | JoinedFrames:
        return self.cache.frames


class Place(Protocol):
    """Where images are opened: a job's context, or a rank's."""

    @property
    def settings(self) -> Settings: ...

    def progress(self, fraction: float, message: str = "", eta_s: float | None = None, *, force: bool = False) -> None: ...

    def log(self, level: str, message: str) -> None: ...


def open_parts(data: DataSpec, image_size: int, context: Place, *names: str, resize_method: str = "bicubic") -> list[Part]:
    """The named parts (`train`, `validation`, `test`) at a size. A second location serves validation and test where it is given."""
    folder = context.settings.data_folder
    context.progress(0.0, "opening images", force=True)
    main = ImageCache(open_frames(source_of(data), cache_folder=folder), image_size, resize_method=resize_method)
    splits = split_rows(main.frames, seed=data.split_seed, deny=data.deny_rows)
    parts = []
    other = None
    for name in names:
        if data.validation_location is None or name == "train":
            rows = splits.part(name)
            if data.validation_location is not None:
                rows = np.sort(np.concatenate([splits.train, splits.validation, splits.test]))
            parts.append(Part(main, rows))
            continue
        if other is None:
            other = ImageCache(
                open_frames(source_of(data, data.validation_location), cache_folder=folder),
                image_size,
                resize_method=resize_method,
            )
        halves = split_rows(other.frames, seed=data.split_seed)
        rows = halves.test if name == "test" else np.sort(np.concatenate([halves.train, halves.validation]))
        parts.append(Part(other, rows))
    return parts
