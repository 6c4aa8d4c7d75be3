"""Latents of a frozen encoder: each image of a training is encoded once.

A latent's last bits depend on the images that are encoded with it, so a row's is always that of the batch in which the first epoch
brings it, whenever it is asked for: a resumed training reaches the same bits. Nothing is encoded in vain: the first epoch encodes
its own batches; after a resume the first batches of the rows that come are encoded once more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dcaecore.batches import Batch, BatchStream

CAP_BYTES = 1 << 30


def pays(stream: BatchStream, total_steps: int, latent_bytes: int) -> bool:
    """Whether a training meets the same images again (augmented ones it does not), and the latents of all find room."""
    again = total_steps * stream.batch_size > len(stream.rows)
    plain = stream.augment is None and stream.world_size == 1 and stream.brings_all_once
    return again and plain and len(stream.rows) * latent_bytes <= CAP_BYTES


class LatentCache:
    """Latents by row id, on the CPU. `encode` maps images `(B, 3, H, W)` to latents `(B, C, h, w)`."""

    def __init__(self, stream: BatchStream, encode: Callable[[Tensor], Tensor]) -> None:
        self.stream, self.encode = stream, encode
        self._kept: dict[str, Tensor] = {}

    def of(self, step: int, batch: Batch) -> Tensor:
        """`(B, C, h, w)` of the batch of a step (from 0)."""
        for row_id in batch.row_ids:
            if row_id not in self._kept:
                first = self.stream.first_step(row_id)
                self._encode(first, batch if first == step else self.stream.batch(first))
        return torch.stack([self._kept[row_id] for row_id in batch.row_ids])

    def _encode(self, step: int, batch: Batch) -> None:
        """Keeps the latents of those rows of a batch that no batch before it brings."""
        with torch.no_grad():
            z_BChw = self.encode(batch.images_BCHW).cpu()
        for row_id, z_Chw in zip(batch.row_ids, z_BChw, strict=True):
            if self.stream.first_step(row_id) == step:
                self._kept.setdefault(row_id, z_Chw.clone())
