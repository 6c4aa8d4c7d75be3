"""Pinned evaluation images: a fixed, evenly spread list of rows with a hash, so any two evaluations compare the same pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcaecore.batches import MIN_MEDIAN_FRAMES, ImageCache
from dcaecore.errors import DataError
from dcaecore.images import foreground


@dataclass(frozen=True)
class PinnedImages:
    """uint8 images `(N, S, S, 3)` with their content and foreground masks `(N, S, S)`."""

    images: np.ndarray
    content: np.ndarray
    foreground: np.ndarray | None
    """None where no episode has the 16 frames that a median needs; `foreground_reason` then says so."""
    foreground_reason: str
    median: np.ndarray | None
    """`(N, S, S, 3)` uint8: the median frame of each image's episode, or None as above."""
    row_ids: tuple[str, ...]
    skipped: tuple[str, ...]
    """Broken rows that were left out."""
    digest: str
    """sha256 over pixels and masks."""

    def __len__(self) -> int:
        return len(self.images)

    def tensor(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images `start` to `stop` as float32 `(n, 3, S, S)` in [-1, 1]."""
        return to_tensor(self.images[start:stop])

    @property
    def foreground_share(self) -> float | None:
        """Foreground pixels over content pixels."""
        return None if self.foreground is None else float(self.foreground.sum() / self.content.sum())


def to_tensor(images_NHWC: np.ndarray) -> Tensor:
    """uint8 `(N, H, W, 3)` to float32 `(N, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_uint8(images_NCHW: Tensor) -> np.ndarray:
    """Model outputs of about [-1, 1] to uint8 `(N, H, W, 3)`: clamped and rounded."""
    scaled = (images_NCHW.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def pin(cache: ImageCache, rows: np.ndarray, count: int, *, skip_broken: bool = False) -> PinnedImages:
    """At most `count` images of `rows`: whole runs of at least 16 from as many episodes as that allows, evenly spaced."""
    if len(rows) == 0:
        raise DataError("There are no images to evaluate on.", code="no_data", given=0)
    chosen = _choose(cache, np.asarray(rows), count)
    images, contents, ids, kept, skipped = [], [], [], [], []
    size = cache.image_size
    for row in chosen:
        try:
            image, (top, bottom, left, right) = cache.row(int(row))
        except DataError:
            if not skip_broken:
                raise
            skipped.append(cache.frames.row_ids[row])
            continue
        content = np.zeros((size, size), dtype=bool)
        content[top:bottom, left:right] = True
        images.append(image)
        contents.append(content)
        ids.append(cache.frames.row_ids[row])
        kept.append(row)
    if not images:
        raise DataError(
            "Every evaluation image is broken.",
            code="no_data",
            given=len(chosen),
            next="Choose a data set whose images can be read.",
        )
    image_array, content_array = np.stack(images), np.stack(contents)
    moving, median, reason = _foreground(cache, np.array(kept), image_array, content_array)
    digest = hashlib.sha256(image_array.tobytes() + content_array.tobytes())
    digest.update(b"" if moving is None else moving.tobytes())
    return PinnedImages(image_array, content_array, moving, reason, median, tuple(ids), tuple(skipped), digest.hexdigest())


def _choose(cache: ImageCache, rows: np.ndarray, count: int) -> np.ndarray:
    count = min(count, len(rows))
    if cache.frames.episodes is None:
        return rows[_spread(len(rows), count)]
    episodes = cache.frames.episodes[rows]
    names = np.unique(episodes)
    groups = max(1, min(len(names), count // MIN_MEDIAN_FRAMES))
    while True:
        used = names[_spread(len(names), groups)]
        shares = [count // groups + (i < count % groups) for i in range(groups)]
        chosen = []
        for name, share in zip(used, shares, strict=True):
            own = rows[episodes == name]
            chosen.append(own[_spread(len(own), min(share, len(own)))])
        # Short episodes: more of them, rather than fewer images.
        if groups == len(names) or sum(len(part) for part in chosen) == count:
            return np.concatenate(chosen)
        groups += 1


def _spread(total: int, count: int) -> np.ndarray:
    """`count` different indices below `total`, evenly spaced."""
    return np.floor(np.arange(count) * total / count).astype(int)


def _foreground(
    cache: ImageCache, rows: np.ndarray, images: np.ndarray, content: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    if cache.frames.episodes is None:
        return None, None, "the images belong to no episodes"
    episodes = cache.frames.episodes[rows]
    moving, median = np.zeros(content.shape, dtype=bool), np.zeros_like(images)
    for name in np.unique(episodes):
        own = episodes == name
        if own.sum() < MIN_MEDIAN_FRAMES:
            return (
                None,
                None,
                f"an episode has {own.sum()} pinned frames of the {MIN_MEDIAN_FRAMES} that a median needs",
            )
        frame = np.median(images[own], axis=0).astype(np.uint8)
        median[own] = frame
        moving[own] = foreground(images[own], frame) & content[own]
    return moving, median, ""
