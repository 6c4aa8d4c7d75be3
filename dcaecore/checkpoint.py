"""Model files: one safetensors file with config, layout and masks; no pickle is written.

The file has a single metadata key, `offshoot`, with sorted JSON (several keys would be written in random order, and equal
models would become different files). A masked parameter is stored as `mask:<parameter>` and `values:<parameter>`, the compressed
mask and kept values (`dcaecore.sparse`), and listed under `masks` with its dtype and shape. Saving and loading are bit-equal. The
digest is over names, dtypes, shapes and bytes of weights and masks, whatever the container.
torch is imported where tensors are touched, so `read_header` serves processes that never load it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcaecore.config import DCAEConfig
from dcaecore.errors import CheckpointError
from dcaecore.layout import Layout
from dcaecore.old_formats import split_masks_of_format_1

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dcaecore.model import DCAE

FORMAT = 2
KEY = "offshoot"
MASK_PREFIX = "mask:"
VALUES_PREFIX = "values:"
CACHE_LINE = 64
"""Bytes; where torch begins the tensors that it makes."""
LEGAL_FILE = "a whole .safetensors, .pt or .pth file with the weights of a DC-AE"
COPY_AGAIN = "Copy or download it again."


@dataclass
class LoadedModel:
    """A model from a file. `masks` (parameter -> bool, True = kept) are those of an unstructured pruning, or of whole units."""

    model: DCAE
    masks: dict[str, Tensor]
    header: dict[str, Any]


def save_model(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    config: DCAEConfig,
    layout: Layout,
    masks: Mapping[str, Tensor] | None = None,
    family: str = "dcae",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model whole or not at all (partial name, fsync, rename); `extra` are further JSON fields of its header.

    Raises CheckpointError where it cannot be written, or where a masked weight is not zero; nothing is left behind then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    masks = masks or {}
    header = {
        **(extra or {}),
        "format": FORMAT,
        "family": family,
        "config": config.to_json(),
        "layout": layout.to_json(),
        "masks": {name: [_dtype_name(state[name]), list(mask.shape)] for name, mask in sorted(masks.items())},
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with ThreadPoolExecutor() as pool:
        for name, made in {n: pool.submit(_packed, n, tensors.pop(n), m.detach().cpu()) for n, m in masks.items()}.items():
            tensors[MASK_PREFIX + name], tensors[VALUES_PREFIX + name] = made.result()
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        save_file(tensors, partial, metadata={KEY: json.dumps(header, sort_keys=True, separators=(",", ":"))})
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The model could not be written: {error}",
            code="write",
            given=str(path),
            next="Check the folder's permissions and the free disk space.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """The metadata of a model file; raises CheckpointError where it is none of ours or damaged."""
    header = read_metadata(path).get(KEY)
    if header is None:
        raise CheckpointError(f"{path.name} is a safetensors file, but not one of Offshoot's.", code="foreign")
    try:
        found: dict[str, Any] = json.loads(header)
        version, missing = found["format"], {"family", "config", "layout", "masks"} - set(found)
        newer = version > FORMAT
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"The header of {path.name} is damaged: {error!r}.", code="bad_header", next=COPY_AGAIN) from error
    if newer:
        raise CheckpointError(
            f"{path.name} was written by a newer version.", code="format", given=version, legal=f"formats 1 to {FORMAT}",
            next="Update Offshoot.",
        )  # fmt: skip
    if missing:
        raise CheckpointError(f"The header of {path.name} lacks {sorted(missing)[0]}.", code="bad_header", next=COPY_AGAIN)
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; raises CheckpointError where it is damaged, cut short or another kind."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100 << 20):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.", code="no_file", given=str(path), legal=LEGAL_FILE) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.", code="unreadable", given=str(path), legal=LEGAL_FILE
        ) from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} is no safetensors file: {error}", code="not_a_checkpoint", given=str(path), legal=LEGAL_FILE
        ) from error
    if 8 + length + end != size:
        raise CheckpointError(
            f"{path.name} is cut short: {size:,} bytes of {8 + length + end:,}.",
            code="truncated",
            next=COPY_AGAIN,
        )
    return dict(header.get("__metadata__") or {})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; raises CheckpointError as `read_metadata` does."""
    from safetensors import SafetensorError, safe_open

    read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is damaged: {error}", code="not_a_checkpoint", next=COPY_AGAIN) from error


def _dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _as_bits(dtype: torch.dtype) -> torch.dtype:
    """The integers of a dtype's width: numpy knows no bfloat16, and comparing integers tells -0.0 from 0.0."""
    import torch

    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _packed(name: str, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compressed mask and compressed kept values; raises CheckpointError where that would lose a weight."""
    import numpy as np
    import torch

    from dcaecore import sparse

    bits, kept = value.reshape(-1).view(_as_bits(value.dtype)).numpy(), mask.to(torch.bool).reshape(-1).numpy()
    values = bits[np.flatnonzero(kept)]
    if np.count_nonzero(bits) != np.count_nonzero(values):
        raise CheckpointError(f"{name} has weights other than 0.0 where its mask says that they are pruned.", code="mask_leak")
    arrays = sparse.pack_mask(kept), sparse.pack_values(values)
    return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])


def split_masks(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and bool masks of a file's tensors, by its header, of whatever format.

    Raises CheckpointError where a mask or its values do not fit what is listed.
    """
    if header["format"] == 1:
        return split_masks_of_format_1(tensors, header["masks"], MASK_PREFIX)
    listed: Mapping[str, Any] = header["masks"]
    import numpy as np
    import torch

    from dcaecore import sparse

    state, masks = dict(tensors), {}

    def unpacked(name: str) -> tuple[Tensor, Tensor]:
        dtype, shape = getattr(torch, listed[name][0]), listed[name][1]
        mask = sparse.unpack_mask(state[MASK_PREFIX + name].numpy(), shape)
        bits, places = torch.zeros(shape, dtype=_as_bits(dtype)), np.flatnonzero(mask)  # a third of the time of a mask as index
        flat = bits.view(-1).numpy()
        flat[places] = sparse.unpack_values(state[VALUES_PREFIX + name].numpy(), len(places), flat.dtype)
        return bits.view(dtype), torch.from_numpy(mask)

    with ThreadPoolExecutor() as pool:
        found = {name: pool.submit(unpacked, name) for name in listed}
        for name, made in found.items():
            try:
                state[name], masks[name] = made.result()
            except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
                raise CheckpointError(
                    f"{name} is listed as masked ({listed[name]}), and its mask and values are not there or do not fit: {error}",
                    code="wrong_mask",
                ) from error
    for name in listed:
        del state[MASK_PREFIX + name], state[VALUES_PREFIX + name]
    return state, masks


def build(config: DCAEConfig, layout: Layout, state: Mapping[str, Tensor], *, name: str = "the file") -> DCAE:
    """A model around given tensors (skeleton on `meta`, then assigned), in eval mode.

    Strict: raises CheckpointError that names the first key or shape that differs.
    """
    import torch

    from dcaecore.model import DCAE

    with torch.device("meta"):
        model = DCAE(config, layout)
    expected = model.state_dict()
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the model has not"
        raise CheckpointError(
            f"{name} does not fit the model: it {what} ({len(missing)} missing, {len(extra)} unknown).",
            code="wrong_keys",
            given=[*missing[:3], *extra[:3]],
            legal="every key of the model, and no other",
        )
    for key, value in expected.items():
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{name}: {key} has shape {tuple(state[key].shape)} where the model has {tuple(value.shape)}.",
                code="wrong_shape",
                given=list(state[key].shape),
                legal=list(value.shape),
            )
    model.load_state_dict({key: _aligned(value) for key, value in state.items()}, strict=True, assign=True)
    return model.requires_grad_(True).eval()


def _aligned(value: Tensor) -> Tensor:
    """The tensor, copied where it does not begin on a cache line, as those that lie in a mapped file may not.

    Kernels choose their order of summation by that, so a model read from a file would differ in last bits from the one that was saved.
    """
    return value if value.data_ptr() % CACHE_LINE == 0 else value.clone()


def load_model(path: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Reads a model file; floating-point weights become `dtype` (None: float32, whatever they are stored as).

    Raises CheckpointError for anything but a whole model of ours, ConfigError for a config or layout that cannot be.
    """
    import torch

    dtype = dtype or torch.float32
    header = read_header(path)
    config, layout = DCAEConfig.from_json(header["config"]), Layout.from_json(header["layout"])
    state, masks = split_masks(load_tensors(path), header)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    model = build(config, layout, state, name=path.name)
    return LoadedModel(model.to(device), {k: v.to(device) for k, v in masks.items()}, header)


def weights_digest(state: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> str:
    """sha256 over (name, dtype, shape, bytes) in name order, masks included as bool tensors named `mask:<parameter>`."""
    import torch

    logical = {**state, **{MASK_PREFIX + k: v.to(torch.bool) for k, v in (masks or {}).items()}}
    digest = hashlib.sha256()
    for name in sorted(logical):
        value = logical[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{str(value.dtype).removeprefix('torch.')}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """`weights_digest` of a model file as stored."""
    header = read_header(path)
    return weights_digest(*split_masks(load_tensors(path), header))
