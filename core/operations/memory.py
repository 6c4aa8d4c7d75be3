"""What to say when a training does not fit into memory: the batch that would, by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from core.errors import CoreError
from core.specs import RetrainSpec
from dcaecore import DCAE, estimate


def total_bytes(device: str) -> int:
    """Memory of a device: of the GPU, else of the machine."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def fitting_batch(model: DCAE, spec: RetrainSpec, room_bytes: float) -> int:
    """The largest divisor of the batch that is at most half of it and fits by the estimate; 1 where none does."""
    for count in range(spec.batch_size // 2, 1, -1):
        if spec.batch_size % count == 0:
            cost = estimate(model.config, model.layout, image_size=spec.image_size, batch_size=count)
            if cost.training_bytes <= room_bytes:
                return count
    return 1


@contextmanager
def memory_told(model: DCAE, spec: RetrainSpec, device: str) -> Iterator[None]:
    """Memory that runs out inside becomes one CoreError with the batch that would fit; checkpoints stay."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        parts = spec.batch_size // fitting_batch(model, spec, 0.8 * total_bytes(device))
        smaller = spec.batch_size // max(parts, 1)
        ways = [f"batch_size {smaller}", f"accumulation_steps {parts} (the same batch, in parts)"] if parts > 1 else []
        raise CoreError(
            f"The memory is not enough for a batch of {spec.batch_size} at {spec.image_size} px.",
            code="out_of_memory", given=spec.batch_size, legal=smaller if parts > 1 else None,
            next=f"Train with {', or '.join([*ways, 'recompute'])}, or a smaller image_size. The last checkpoint is whole: go on from "
            "it with other settings.",
        ) from error  # fmt: skip
