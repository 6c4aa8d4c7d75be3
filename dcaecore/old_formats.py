"""Files of earlier formats, brought to the present one as they are read. One function for each step from a format to the next.

    1  masked tensors lie dense, each beside its mask as plain bits (`mask:<parameter>`); `masks` lists parameter -> shape
    2  masked tensors lie as compressed mask and compressed kept values; `masks` lists parameter -> [dtype, shape]

`tests/assets/formats` keeps a file of each, written by the code of its time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dcaecore.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def split_masks_of_format_1(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and bool masks of a file of format 1. Raises CheckpointError where a mask is missing or does not fit."""
    import numpy as np
    import torch

    state, masks = dict(tensors), {}
    for name, shape in shapes.items():
        try:
            bits, count = state.pop(prefix + name).numpy(), math.prod(shape)
            if len(bits) != (count + 7) // 8:
                raise ValueError(f"{len(bits)} bytes for {count} bits")
            masks[name] = torch.from_numpy(np.unpackbits(bits, count=count).view(bool)).reshape(shape)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{name} is listed as masked ({shape}), and its mask is not there or does not fit: {error}", code="wrong_mask"
            ) from error
    return state, masks
