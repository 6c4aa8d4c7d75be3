"""Several data sets at once: their rows as one source, and how each batch is shared between them.

The share of set k in step s is w_k(s)^(1/T) over the sum: w its weight (its number of rows where none is given), T the temperature (1
keeps the weights, larger ones even them out), and w(s) goes in a straight line from the first weights to the last ones: a curriculum.
Each batch holds its share of each set, rounded up or down so that the mean over steps is exact; a set's own rows come in the order of
its `RowOrder`. Everything is a function of (seed, step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from dcaecore.data import DataSource, Frames
from dcaecore.errors import ConfigError
from dcaecore.pinned import PinnedImages
from dcaecore.sampling import RowOrder

GOLDEN = (5**0.5 - 1) / 2
"""Fractional parts of its multiples fill [0, 1) evenly (Weyl): what is rounded up here is rounded down there."""


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


class MixedOrder:
    """An endless sequence of rows of several sets, `batch_size` of them a step.

    `start` and `end` `(K,)` are the sets' weights at the first and at the last of `total_steps` steps; after it they stay. Raises
    ConfigError where they are not one positive number a set.
    """

    def __init__(
        self,
        orders: Sequence[RowOrder],
        start: Sequence[float],
        end: Sequence[float] | None = None,
        *,
        batch_size: int,
        total_steps: int,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        end = start if end is None else end
        for given in (start, end):
            if (
                len(given) != len(orders)
                or not all(np.isfinite(weight) and weight >= 0 for weight in given)
                or not sum(given) > 0
            ):
                raise ConfigError(
                    "The weights of data sets are one number a set, none below 0 and one above.", code="data_weights",
                    given=list(given), legal=f"{len(orders)} numbers",
                )  # fmt: skip
        self.orders, self.batch_size, self.seed = list(orders), batch_size, seed
        self.total_steps, self.temperature = total_steps, temperature
        self.start, self.end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
        self._counts = self._count(np.arange(total_steps))
        self._before = np.vstack([np.zeros((1, len(self.orders)), dtype=np.int64), np.cumsum(self._counts, axis=0)])

    @property
    def weights(self) -> np.ndarray:
        """`(K,)`: those of the sets at the first step."""
        return self.start

    def __len__(self) -> int:
        return sum(len(order) for order in self.orders)

    def spare(self, place: int) -> int:
        """A row to take instead of a broken one: places that follow each other lead through all rows of all sets."""
        return int(self._spares[place % len(self._spares)])

    @cached_property
    def _spares(self) -> np.ndarray:
        return np.random.default_rng([self.seed, _SALT]).permutation(np.concatenate([order.rows for order in self.orders]))

    def shares_at(self, steps: np.ndarray) -> np.ndarray:
        """`(S, K)`: the sets' shares of the batches of steps `(S,)` (from 0)."""
        way = np.minimum(1.0, steps / max(1, self.total_steps - 1))[:, None]
        found: np.ndarray = ((1 - way) * self.start + way * self.end) ** (1.0 / self.temperature)
        return found / found.sum(axis=1, keepdims=True)

    def counts(self, step: int) -> np.ndarray:
        """`(K,)`: how many images of each set the batch of a step holds."""
        found: np.ndarray = self._counts[step] if step < self.total_steps else self._count(np.array([step]))[0]
        return found

    def row(self, place: int) -> int:
        """The row at a place (from 0) of the sequence."""
        step, within = divmod(place, self.batch_size)
        own = self.counts(step)
        # Sets stand in any order within the batch, so that each part and each process has of all.
        place_in_sets = int(np.random.default_rng([self.seed, step, _SALT]).permutation(self.batch_size)[within])
        edges = np.cumsum(own)
        number = int(np.searchsorted(edges, place_in_sets, side="right"))
        return self.orders[number].row(int(self._drawn(step)[number]) + place_in_sets - int(edges[number] - own[number]))

    def _drawn(self, step: int) -> np.ndarray:
        """`(K,)`: how many of each set the steps before brought."""
        if step <= self.total_steps:
            found: np.ndarray = self._before[step]
            return found
        return self._before[-1] + self._count(np.arange(self.total_steps, step)).sum(axis=0)

    def _count(self, steps: np.ndarray) -> np.ndarray:
        """Of marks `(offset + i) / batch_size`, how many lie in each set's stretch of [0, 1)."""
        edges = np.cumsum(self.shares_at(steps), axis=1) * self.batch_size
        below = np.clip(np.ceil(edges - (steps * GOLDEN % 1.0)[:, None] - 1e-9), 0, self.batch_size).astype(np.int64)
        below[:, -1] = self.batch_size
        return np.diff(below, axis=1, prepend=0)


_SALT = 0xB17
"""Keeps these draws apart from those of the orders, which start from the same seed."""


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
