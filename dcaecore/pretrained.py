"""Models from elsewhere: a Hugging Face id, a folder, a `.safetensors`, a `.pt/.pth`, in our keys or either published format.

Pickles are never executed: `.pt/.pth` files are read with `weights_only=True` or refused. What was found and converted is told in
`notes`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcaecore.checkpoint import KEY, build, load_model, load_tensors, read_metadata
from dcaecore.config import DCAEConfig
from dcaecore.errors import CheckpointError
from dcaecore.keys import detect_format, from_format, unwrap
from dcaecore.model import DCAE
from dcaecore.zoo import DEMO_FILE, HUB_IDS, VARIANTS, find_variant

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
NESTED_KEYS = ("state_dict", "model", "model_state_dict", "ema", "autoencoder")


@dataclass
class Pretrained:
    """A model from elsewhere, and how it was read."""

    model: DCAE
    variant: str | None
    """Name in the zoo, or None for a shape of its own."""
    key_format: str
    masks: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def from_pretrained(
    source: str | Path, *, revision: str | None = None, variant: str | None = None, config: DCAEConfig | None = None
) -> Pretrained:
    """Reads weights and says which variant they are.

    `source`: `demo`, a zoo name or Hugging Face id (downloaded), a folder with one weights file, or a file. The shape is found by
    comparing keys and shapes with the zoo, unless `variant` or `config` says it. Raises CheckpointError for anything that is no
    whole DC-AE, and names the first key or shape that differs.
    """
    path = _locate(str(source), revision)
    notes: list[str] = []
    if path.suffix == ".safetensors" and KEY in read_metadata(path):
        loaded = load_model(path)
        return Pretrained(loaded.model, find_variant(loaded.model.config), "offshoot", loaded.masks, notes)
    state = load_tensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = unwrap(state, notes.append)
    fmt = detect_format(state)
    if fmt is None:
        sample = ", ".join(sorted(state)[:3])
        raise CheckpointError(
            f"{path.name} holds another model: its keys are like {sample}.",
            code="other_model",
            legal="a DC-AE in the original (efficientvit), diffusers or Offshoot's keys",
        )
    half = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    name, found = _recognise(half, fmt, variant, config, path.name)
    converted = half if fmt == "offshoot" else from_format(half, found, fmt)
    if fmt != "offshoot":
        notes.append(f"keys converted from the {fmt} format")
    return Pretrained(build(found, _no_layout(), converted, name=path.name), name, fmt, {}, notes)


def _no_layout() -> Any:
    from dcaecore.layout import Layout

    return Layout()


def _recognise(
    state: Mapping[str, Tensor], fmt: str, variant: str | None, config: DCAEConfig | None, name: str
) -> tuple[str | None, DCAEConfig]:
    if config is not None:
        return find_variant(config), config
    if variant is not None:
        if variant not in VARIANTS:
            raise CheckpointError(f"There is no variant {variant!r}.", code="variant", given=variant, legal=sorted(VARIANTS))
        return variant, VARIANTS[variant]
    best: tuple[int, str] | None = None
    for candidate, known in VARIANTS.items():
        with torch.device("meta"):
            expected = DCAE(known).state_dict()
        ours = state if fmt == "offshoot" else from_format(state, known, fmt)
        same = sum(key in ours and ours[key].shape == value.shape for key, value in expected.items())
        wrong = len(expected) + len(ours) - 2 * same
        if wrong == 0:
            return candidate, replace(known)
        if best is None or wrong < best[0]:
            best = (wrong, candidate)
    assert best is not None
    raise CheckpointError(
        f"{name} is a DC-AE of no known shape; the nearest is {best[1]} ({best[0]} tensors differ).",
        code="unknown_shape",
        legal=sorted(VARIANTS),
        next="Give its config, or keep the config.json beside the file.",
    )


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "protocol" not in str(error) and "GLOBAL" not in str(error) and "Unsupported" not in str(error):
            raise CheckpointError(f"{path.name} is no PyTorch checkpoint: {error}", code="not_a_checkpoint") from error
        raise CheckpointError(
            f"{path.name} holds Python code or objects besides weights; it was not executed.",
            code="unsafe_pickle",
            next="Save its state_dict alone, or better as safetensors.",
        ) from error
    except Exception as error:  # the reader meets arbitrary bytes, and raises whatever they lead it to
        raise CheckpointError(f"{path.name} is no PyTorch checkpoint: {error}", code="not_a_checkpoint") from error
    for _ in range(3):
        inner = next((data[k] for k in NESTED_KEYS if isinstance(data, dict) and isinstance(data.get(k), dict)), None)
        if inner is None:
            break
        data = inner
    if not isinstance(data, dict) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        raise CheckpointError(f"{path.name} holds no state dict.", code="not_a_checkpoint", given=type(data).__name__)
    return data


def _locate(source: str, revision: str | None) -> Path:
    if source == "demo":
        return DEMO_FILE
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in WEIGHT_SUFFIXES:
            raise CheckpointError(f"{path.name} is no checkpoint.", code="not_a_checkpoint", legal=WEIGHT_SUFFIXES)
        return path
    if path.is_dir():
        return _in_folder(path)
    if source in HUB_IDS:
        source = HUB_IDS[source][0]
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"There is no model {source!r}.",
            code="no_file",
            given=source,
            legal=f"demo, a file, a folder, a hub id, or one of {', '.join(HUB_IDS)}",
        )
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(source, revision=revision, allow_patterns=["*.safetensors", "config.json"])
    except Exception as error:  # the hub client raises many kinds for one cause: it cannot be had
        raise CheckpointError(
            f"{source} could not be downloaded: {error}", code="hub", given=source, next="Check the id and the network."
        ) from error
    return _in_folder(Path(folder))


def _in_folder(folder: Path) -> Path:
    files = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    chosen = [p for p in files if p.suffix == ".safetensors"] or files
    if len(chosen) != 1:
        what = "no weights file" if not chosen else f"{len(chosen)} weights files"
        raise CheckpointError(
            f"{folder.name} holds {what}.",
            code="no_file",
            given=[p.name for p in chosen][:5],
            next="Name the file itself.",
        )
    return chosen[0]
