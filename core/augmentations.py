"""What a training's images will look like: the augmentations and the resize method of a spec on frames of its own data. No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.checks import checked
from core.settings import Settings
from core.specs import DataSpec, RetrainSpec
from dcaecore.augment import Augment
from dcaecore.data import DataSource, open_frames
from dcaecore.images import to_square

AUGMENTATIONS = tuple(f"augment_{field.name}" for field in fields(Augment))


@dataclass(frozen=True)
class Preview:
    """One frame as PNG: as it comes, as the model must rebuild it, and as it sees it (in a few draws)."""

    plain: bytes
    draws: tuple[tuple[bytes, bytes], ...]
    """(target, seen) of steps 0, 1, ..."""


def augment_of(spec: RetrainSpec) -> Augment:
    """The augmentations of a spec."""
    return Augment(**{name.removeprefix("augment_"): getattr(spec, name) for name in AUGMENTATIONS})


def source_of(data: DataSpec, location: str | None = None) -> DataSource:
    """The data spec as dcaecore's source."""
    return DataSource(data.kind, location or data.location, data.column, "train", data.revision, data.max_rows)


class Augmentations:
    """The part of `ModelManager` that shows what a training sees."""

    settings: Settings

    def preview_images(self, spec: RetrainSpec | Mapping[str, Any], *, images: int = 3, draws: int = 2) -> list[Preview]:
        """Evenly spaced frames of a training's data sets with the first draws of its augmentations.

        None of a hub set, which is read when a training begins. Raises CoreError for a spec, DataError for data that cannot be.
        """
        given = checked(RetrainSpec, spec)
        sets = [data for data in given.data_sets if data.kind != "hub"]
        augment = augment_of(given)
        made = []
        frames = [frame for data in sets for frame in _frames(data, self.settings.data_folder, max(1, images // len(sets)))]
        for place, frame in enumerate(frames):
            image, (top, bottom, left, right) = to_square(frame, given.image_size, given.resize_method)
            content = np.zeros(image.shape[:2], dtype=bool)
            content[top:bottom, left:right] = True
            drawn = [augment(image, content, content, seed=given.seed, step=step, place=place) for step in range(draws)]
            made.append(Preview(_png(image), tuple((_png(one.target), _png(one.seen)) for one in drawn)))
        return made


@lru_cache(maxsize=8)
def _frames(data: DataSpec, folder: Path, count: int) -> list[Image.Image]:
    frames = open_frames(source_of(data), cache_folder=folder)
    chosen = np.unique(np.linspace(0, len(frames) - 1, count).astype(int))
    return [frames.image(int(row)) for row in chosen]


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
