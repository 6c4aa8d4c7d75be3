"""How each batch is shared between several data sets. Free of torch.

The share of set k in step s is w_k(s)^(1/T) over the sum: w its weight (its number of rows where none is given), T the temperature (1
keeps the weights, larger ones even them out), and w(s) goes in a straight line from the first weights to the last ones: a curriculum.
Each batch holds its share of each set, rounded up or down so that the mean over steps is exact; a set's own rows come in the order of
its `RowOrder`. Everything is a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from dcaecore.errors import ConfigError
from dcaecore.sampling import RowOrder

GOLDEN = (5**0.5 - 1) / 2
"""Fractional parts of its multiples fill [0, 1) evenly (Weyl): what is rounded up here is rounded down there."""
_SALT = 0xB17
"""Keeps these draws apart from those of the orders, which start from the same seed."""


def shares_at(
    steps: np.ndarray,
    start: Sequence[float] | np.ndarray,
    end: Sequence[float] | np.ndarray,
    *,
    total_steps: int,
    temperature: float,
) -> np.ndarray:
    """`(S, K)`: the sets' shares of the batches of steps `(S,)` (from 0), from their weights at the first and the last step."""
    way = np.minimum(1.0, steps / max(1, total_steps - 1))[:, None]
    found: np.ndarray = ((1 - way) * np.asarray(start) + way * np.asarray(end)) ** (1.0 / temperature)
    shares: np.ndarray = found / found.sum(axis=1, keepdims=True)
    return shares


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
        return shares_at(steps, self.start, self.end, total_steps=self.total_steps, temperature=self.temperature)

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
