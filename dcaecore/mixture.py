"""Several data sets as one: their rows as one source, and their pinned images. How each batch is shared: `dcaecore.shares`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dcaecore.data import DataSource, Frames
from dcaecore.pinned import PinnedImages


class JoinedFrames:
    """Rows of several sources as one; usable wherever `Frames` is. Row ids are `<set, from 1>:<row id>`, episodes stay apart."""

    def __init__(self, sets: Sequence[Frames]) -> None:
        self.sets = list(sets)
        self.starts = np.cumsum([0, *(len(frames) for frames in self.sets)])
        self.row_ids = [f"{number}:{row_id}" for number, frames in enumerate(self.sets, start=1) for row_id in frames.row_ids]
        self.episodes = _joined_episodes(self.sets)

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def source(self) -> DataSource:
        return self.sets[0].source

    @property
    def broken(self) -> dict[str, str]:
        """Row id -> what was wrong with it, of the rows found broken so far."""
        return {f"{i}:{row}": why for i, frames in enumerate(self.sets, start=1) for row, why in frames.broken.items()}

    def image(self, index: int) -> Image.Image:
        """Row `index` as RGB; raises DataError as `Frames.image` does."""
        place = self.set_of(int(index))
        return self.sets[place].image(int(index) - int(self.starts[place]))

    def set_of(self, index: int) -> int:
        """The number (from 0) of the set that a row is of."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def identity(self, rows: Sequence[int] | np.ndarray | None = None) -> dict[str, Any]:
        """That of each set, in order."""
        used = np.arange(len(self)) if rows is None else np.asarray(rows)
        parts = []
        for frames, start, stop in zip(self.sets, self.starts[:-1], self.starts[1:], strict=True):
            parts.append(frames.identity(used[(used >= start) & (used < stop)] - start))
        return {"kind": "mixture", "sets": parts}


def _joined_episodes(sets: Sequence[Frames]) -> np.ndarray | None:
    """Numbers that no two sets share; frames of a set without episodes are an episode each, so that none has a median."""
    if all(frames.episodes is None for frames in sets):
        return None
    found, first = [], 0
    for frames in sets:
        own = np.arange(len(frames)) if frames.episodes is None else np.unique(frames.episodes, return_inverse=True)[1]
        found.append(own.astype(np.int64) + first)
        first += int(own.max(initial=-1)) + 1
    return np.concatenate(found)


def joined_pinned(parts: Sequence[PinnedImages]) -> PinnedImages:
    """Pinned images of several sets as one, row ids as in `JoinedFrames`; a set without a foreground adds none."""
    some = any(part.foreground is not None for part in parts)
    moving = [np.zeros_like(part.content) if part.foreground is None else part.foreground for part in parts]
    medians = [part.median for part in parts if part.median is not None]
    digest = hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()

    def named(field: str) -> tuple[str, ...]:
        return tuple(f"{number}:{row}" for number, part in enumerate(parts, start=1) for row in getattr(part, field))

    return PinnedImages(
        np.concatenate([part.images for part in parts]), np.concatenate([part.content for part in parts]),
        np.concatenate(moving) if some else None, "" if some else parts[0].foreground_reason,
        np.concatenate(medians) if len(medians) == len(parts) else None, named("row_ids"), named("skipped"), digest,
    )  # fmt: skip
