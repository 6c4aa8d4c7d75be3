"""A stored model's tensors as numpy arrays, one at a time, without torch: what pages look at.

Masked weights are unpacked with zeros where they were pruned. numpy has no bfloat16: its bits are widened to float32, which is exact.
"""

from __future__ import annotations

import json
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dcaecore import read_header
from dcaecore.checkpoint import MASK_PREFIX, VALUES_PREFIX
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout
from dcaecore.sparse import unpack_mask, unpack_values

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class StoredWeights:
    """The tensors of one model file. Raises CheckpointError for a file that is none of ours."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.config, self.layout = DCAEConfig.from_json(header["config"]), Layout.from_json(header["layout"])
        self._masked: dict[str, Any] = header["masks"]
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self._entries = {name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"}
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor, masked ones included, by name."""
        plain = [name for name in self._entries if not name.startswith((MASK_PREFIX, VALUES_PREFIX))]
        return tuple(sorted([*plain, *self._masked]))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by name."""
        return {name: self.shape(name) for name in self.names}

    @property
    def tensor_bytes(self) -> int:
        """Of all tensors as they lie in the file, its header left out."""
        return len(self._bytes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(self._masked[name][1] if name in self._masked else self._entries[name]["shape"])

    def array(self, name: str) -> np.ndarray:
        """A tensor's values, floating-point ones as float32 (float64 stays)."""
        if name not in self._masked:
            entry = self._entries[name]
            return _values(self._raw(name), entry["dtype"]).reshape(entry["shape"])
        dtype, shape = self._masked[name]
        mask = unpack_mask(np.asarray(self._raw(MASK_PREFIX + name)), shape)
        bits = np.dtype(_DTYPES[_NAMES[dtype]])
        kept = unpack_values(np.asarray(self._raw(VALUES_PREFIX + name)), int(np.count_nonzero(mask)), bits)
        found = np.zeros(shape, dtype=np.float64 if dtype == "float64" else np.float32)
        found[mask] = _values(kept.view(np.uint8), _NAMES[dtype])
        return found

    def _raw(self, name: str) -> np.ndarray:
        start, end = self._entries[name]["data_offsets"]
        return self._bytes[start:end]


def _values(raw: np.ndarray, dtype: str) -> np.ndarray:
    found = np.frombuffer(raw.tobytes(), dtype=_DTYPES[dtype])
    if dtype == "BF16":
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found.astype(np.float32) if dtype == "F16" else found
