"""Training batches: which rows a step sees is a pure function of (seed, global step), so a resumed run sees the same ones.

Images are decoded and resized once and kept as uint8 (up to a memory cap), so small sets cost nothing after the first epoch.
Loader *threads*, not processes: Pillow and zlib release the interpreter lock, decoding is the only work, and threads share the
cache and start at once. They compute in numpy alone: a thread's first torch operation gives it a pool of OpenMP threads of its own,
which spin beside the training's (with two of each on two cores a step took 1.6 times as long).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dcaecore.augment import Augment
from dcaecore.data import Frames
from dcaecore.errors import ConfigError, DataError
from dcaecore.images import foreground, to_square
from dcaecore.sampling import Order, RowOrder

if TYPE_CHECKING:
    from dcaecore.mixture import JoinedFrames

MEDIAN_FRAMES = 32
MIN_MEDIAN_FRAMES = 16


@dataclass(frozen=True)
class Batch:
    """One step's images."""

    images_BCHW: Tensor
    """float32 in [-1, 1]."""
    foreground_B1HW: Tensor
    """bool: pixels that move; all False where an episode has fewer than 16 frames."""
    row_ids: tuple[str, ...]
    rows: tuple[int, ...] = ()
    """Their indices in the source."""
    seen_BCHW: Tensor | None = None
    """What the model is given instead of `images_BCHW`, which it must rebuild; None where that is the same."""


class ImageCache:
    """Decoded, padded, resized rows of a source, with each episode's median frame."""

    def __init__(
        self, frames: Frames | JoinedFrames, image_size: int, *, cap_bytes: int = 2 << 30, resize_method: str = "bicubic"
    ) -> None:
        self.frames = frames
        self.image_size, self.resize_method = image_size, resize_method
        self._room = cap_bytes
        self._kept: dict[int, tuple[np.ndarray, tuple[int, int, int, int]]] = {}
        self.median = lru_cache(maxsize=256)(self._median)

    def row(self, index: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """uint8 `(S, S, 3)` and the content box of a row; raises DataError for a broken one."""
        found = self._kept.get(index)
        if found is None:
            found = to_square(self.frames.image(index), self.image_size, self.resize_method)
            if self._room >= found[0].nbytes:
                self._room -= found[0].nbytes
                self._kept[index] = found
        return found

    def _median(self, episode: int) -> np.ndarray | None:
        assert self.frames.episodes is not None
        rows = np.flatnonzero(self.frames.episodes == episode)
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, MEDIAN_FRAMES).astype(int))]
        images = []
        for row in chosen:
            try:
                images.append(self.row(int(row))[0])
            except DataError:
                continue  # the row is counted and named where it is drawn
        if len(images) < MIN_MEDIAN_FRAMES:
            return None
        return np.median(np.stack(images), axis=0).astype(np.uint8)

    def foreground(self, index: int) -> np.ndarray:
        """bool `(S, S)`: pixels of a row that differ from its episode's median frame."""
        image, _ = self.row(index)
        median = None if self.frames.episodes is None else self.median(int(self.frames.episodes[index]))
        if median is None:
            return np.zeros(image.shape[:2], dtype=bool)
        return foreground(image[None], median)[0]


def _to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 `(H, W, 3)` each, to float32 `(B, 3, H, W)` in [-1, 1]."""
    x_BCHW = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32, order="C")
    x_BCHW /= np.float32(127.5)
    x_BCHW -= np.float32(1.0)
    return torch.from_numpy(x_BCHW)


class BatchStream:
    """An endless, seekable stream of batches.

    Step s takes rows `[s * batch_size, ...)` of the sequence that `order` tells (None: a `RowOrder` by the seed), whatever the number
    of processes (`world_size`): each `rank` takes its share of each of the `parts` that the batch is computed in. A broken row
    raises, or with `skip_broken` its place is taken by the next row of the order, and it is counted in `skipped`.
    """

    def __init__(
        self,
        cache: ImageCache,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        skip_broken: bool = False,
        with_foreground: bool = True,
        rank: int = 0,
        world_size: int = 1,
        parts: int = 1,
        augment: Augment | None = None,
        order: Order | None = None,
    ) -> None:
        if len(rows) == 0:
            raise DataError("There are no training images.", code="no_data", given=0)
        if batch_size % (parts * world_size):
            each = f" and {world_size} processes" if world_size > 1 else ""
            raise ConfigError(
                f"A batch of {batch_size} does not divide into {parts} parts{each}.",
                given=parts * world_size,
                legal=[n for n in range(1, batch_size + 1) if batch_size % n == 0],
            )
        self.cache = cache
        self.rows = np.asarray(rows)
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.skip_broken = skip_broken
        self.with_foreground = with_foreground
        self.rank, self.world_size, self.parts = rank, world_size, parts
        part, share = batch_size // parts, batch_size // parts // world_size
        self.places = [first + rank * share + i for first in range(0, batch_size, part) for i in range(share)]
        """Which images of the whole batch are this rank's."""
        self.augment = augment if augment is not None and augment.any else None
        self.skipped: set[str] = set()
        self.order: Order = RowOrder(self.rows, seed) if order is None else order

    def rows_of(self, step: int) -> list[int]:
        """Row indices of a global step on this rank."""
        return [self.order.row(step * self.batch_size + place) for place in self.places]

    def first_step(self, row_id: str) -> int:
        """The global step (from 0) that first brings a row to a world of one rank."""
        return self._first_steps[row_id]

    @property
    def brings_all_once(self) -> bool:
        """Whether each row comes once in an epoch, which ends before any comes again."""
        return self.order.weights is None

    @cached_property
    def _first_steps(self) -> dict[str, int]:
        ids = self.cache.frames.row_ids
        return {ids[self.order.row(place)]: place // self.batch_size for place in range(len(self.rows))}

    def batch(self, step: int) -> Batch:
        """The batch of a global step (from 0)."""
        images, seen, foregrounds, rows = [], [], [], []
        size = self.cache.image_size
        for place, wanted in zip(self.places, self.rows_of(step), strict=True):
            row = self._readable(wanted, step, place)
            image, (top, bottom, left, right) = self.cache.row(row)
            content = np.zeros((size, size), dtype=bool)
            content[top:bottom, left:right] = True
            moving = self.cache.foreground(row) & content if self.with_foreground else np.zeros_like(content)
            if self.augment is not None:
                drawn = self.augment(image, content, moving, seed=self.seed, step=step, place=place)
                image, moving = drawn.target, drawn.moving
                seen.append(drawn.seen)
            images.append(image)
            foregrounds.append(moving)
            rows.append(row)
        x = _to_tensor(images)
        moving_B1HW = torch.from_numpy(np.stack(foregrounds)).unsqueeze(1)
        blurred = self.augment is not None and self.augment.blur > 0
        ids = tuple(self.cache.frames.row_ids[row] for row in rows)
        return Batch(x, moving_B1HW, ids, tuple(rows), _to_tensor(seen) if blurred else None)

    def _readable(self, row: int, step: int, place: int) -> int:
        for offset in range(len(self.rows)):
            try:
                self.cache.row(row)
                return row
            except DataError:
                if not self.skip_broken:
                    raise
                self.skipped.add(self.cache.frames.row_ids[row])
                row = self.order.spare(step * self.batch_size + place + offset + 1)
        raise DataError(
            "Every training image is broken.",
            code="no_data",
            given=len(self.rows),
            next="Choose a data set whose images can be read.",
        )

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches from a global step on, prefetched by `num_workers` threads; close the iterator to end them."""
        if self.num_workers == 0:
            step = start_step
            while True:
                yield self.batch(step)
                step += 1
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader") as pool:
            ahead: list[Future[Batch]] = [pool.submit(self.batch, start_step + i) for i in range(2 * self.num_workers)]
            step = start_step + len(ahead)
            try:
                while True:
                    future = ahead.pop(0)
                    ahead.append(pool.submit(self.batch, step))
                    step += 1
                    yield future.result()
            finally:
                for future in ahead:
                    future.cancel()
