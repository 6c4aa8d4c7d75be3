"""Which images a training draws: a pure function of (seed, place), so a resumed run and any number of processes draw the same ones.

An epoch of a set is a permutation of its rows. Where rows have weights, it is as long, and row i comes N w_i / sum(w) times in it,
rounded up or down at random (systematic sampling, Madow 1949): what is drawn twice as often is so in each epoch, not just on average.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np


class Order(Protocol):
    """An endless sequence of rows."""

    @property
    def weights(self) -> np.ndarray | None:
        """None where each row comes once in an epoch."""

    def __len__(self) -> int: ...

    def row(self, place: int) -> int:
        """The row at a place (from 0) of the sequence."""

    def spare(self, place: int) -> int:
        """A row to take instead of a broken one: places that follow each other lead through all rows."""


class RowOrder:
    """An endless sequence of the rows of one set. `weights` `(N,)` are how often each is drawn beside the others; None: alike."""

    def __init__(self, rows: np.ndarray, seed: int, weights: np.ndarray | None = None) -> None:
        self.rows, self.seed = np.asarray(rows), seed
        self.weights = None if weights is None or np.all(weights == weights[0]) else np.asarray(weights, dtype=np.float64)
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, place: int) -> int:
        """The row at a place (from 0) of the sequence."""
        epoch, within = divmod(place, len(self.rows))
        return int(self.epoch(epoch)[within])

    def spare(self, place: int) -> int:
        """A row to take instead of a broken one: places that follow each other lead through all rows."""
        return int(self._spares[place % len(self.rows)])

    @cached_property
    def _spares(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 0]).permutation(self.rows)

    def _epoch(self, epoch: int) -> np.ndarray:
        chance = np.random.default_rng([self.seed, epoch])
        if self.weights is None:
            return chance.permutation(self.rows)
        shuffled, count = chance.permutation(len(self.rows)), len(self.rows)
        edges = np.cumsum(self.weights[shuffled])
        marks = (chance.random() + np.arange(count)) * (edges[-1] / count)
        drawn = np.minimum(np.searchsorted(edges, marks, side="right"), count - 1)
        return chance.permutation(self.rows[shuffled[drawn]])
