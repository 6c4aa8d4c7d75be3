"""Sparse storage: a masked tensor as its mask and the values that are left, each compressed.

The mask is one bit a weight; the values' bytes are shuffled first (all first bytes, all second bytes, ...: signs and exponents of
neighbours resemble each other, mantissas do not) and both are compressed with zstd. Unpacking is bit-equal. numpy only, so that
processes without torch can look at stored weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

GROUP, KEPT = 4, 2
"""2:4: of each group of consecutive input channels of a weight, how many are kept."""
LEVEL = 1
"""Of zstd. Level 6 takes 1.7 times as long for a byte in 700 of the dense tensor: mantissas are noise."""


def _compress(data: np.ndarray) -> np.ndarray:
    packed = pa.Codec("zstd", compression_level=LEVEL).compress(
        np.ascontiguousarray(data).reshape(-1).view(np.uint8), asbytes=True
    )
    return np.frombuffer(bytearray(packed), dtype=np.uint8)


def _decompress(packed: np.ndarray, num_bytes: int) -> np.ndarray:
    """Raises ValueError where the bytes are no zstd data of `num_bytes`."""
    try:
        raw = pa.Codec("zstd").decompress(np.ascontiguousarray(packed), decompressed_size=num_bytes, asbytes=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    if len(raw) != num_bytes:
        raise ValueError(f"{len(raw)} bytes instead of {num_bytes}")
    return np.frombuffer(raw, dtype=np.uint8)


def pack_mask(mask: np.ndarray) -> np.ndarray:
    """A bool array of any shape as compressed bytes, `(bytes,)` uint8."""
    return _compress(np.packbits(mask.reshape(-1)))


def unpack_mask(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The bool array again; raises ValueError for bytes that are no mask of this shape."""
    count = math.prod(shape)
    return np.unpackbits(_decompress(packed, (count + 7) // 8), count=count).view(bool).reshape(shape)


def pack_values(values: np.ndarray) -> np.ndarray:
    """A 1-D array of numbers as compressed bytes, `(bytes,)` uint8."""
    whole = values.view(np.uint8).reshape(len(values), values.itemsize)
    shuffled = np.empty((values.itemsize, len(values)), dtype=np.uint8)
    for place in range(values.itemsize):  # a third of the time of a transposed copy
        shuffled[place] = whole[:, place]
    return _compress(shuffled)


def unpack_values(packed: np.ndarray, count: int, dtype: np.dtype) -> np.ndarray:
    """The `(count,)` numbers again; raises ValueError for bytes that are not these."""
    shuffled = _decompress(packed, count * dtype.itemsize).reshape(dtype.itemsize, count)
    whole = np.empty((count, dtype.itemsize), dtype=np.uint8)
    for place in range(dtype.itemsize):
        whole[:, place] = shuffled[place]
    return whole.view(dtype).reshape(count)
