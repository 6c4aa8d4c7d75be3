"""Models from elsewhere: a Hugging Face id, a folder, a `.safetensors`, a `.pt/.pth`, in our keys or either published format.

Pickles are never executed: `.pt/.pth` files are read with `weights_only=True` or refused. What was found, assumed and
converted is told in `notes`.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcaecore.checkpoint import FORMAT, KEY, LEGAL_FILE, build, load_model, load_tensors, read_metadata
from dcaecore.config import CoderConfig, DCAEConfig
from dcaecore.errors import CheckpointError
from dcaecore.keys import DEFAULT_HEAD_DIM, config_of_diffusers, detect_format, from_format, infer_config, unwrap
from dcaecore.layout import Layout
from dcaecore.model import DCAE
from dcaecore.zoo import DEMO_FILE, HUB_IDS, VARIANTS, find_variant, variant_of_release

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
NESTED_KEYS = ("state_dict", "model", "model_state_dict", "ema", "autoencoder")
TORCH_FILE_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of what `torch.save` writes: a zip archive, or a bare pickle in its older format."""

Note = Callable[[str], None]


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

    `source`: `demo`, a zoo name or Hugging Face id (downloaded), a folder with one weights file, or a file. The shape is
    what `variant` or `config` says, else what a `config.json` beside the weights says, else found by comparing keys and
    shapes with the zoo, else inferred from them. Raises CheckpointError for anything that is no whole DC-AE, and names the
    first key or shape that differs.
    """
    if variant is not None and variant not in VARIANTS:
        raise CheckpointError(f"There is no variant {variant!r}.", code="variant", given=variant, legal=sorted(VARIANTS))
    asked = config if config is not None else VARIANTS[variant] if variant is not None else None
    notes: list[str] = []
    path, hub_id = _locate(str(source), revision)
    if revision is not None and hub_id is None:
        notes.append(f"revision {revision!r} does not apply: {path.name} is on this machine")
    if path.suffix == ".safetensors" and KEY in read_metadata(path):
        loaded = load_model(path)
        found = loaded.model.config
        if asked is not None and asked != found:
            raise CheckpointError(
                f"{path.name} is of another shape than asked for.",
                code="wrong_variant",
                given=variant,
                legal=find_variant(found),
                next="Leave the variant out: the file names its own shape.",
            )
        if loaded.header["format"] < FORMAT:
            notes.append(f"read from format {loaded.header['format']}; files are written in format {FORMAT} now")
        return Pretrained(loaded.model, find_variant(found), "offshoot", loaded.masks, notes)
    state = load_tensors(path) if path.suffix == ".safetensors" else _read_torch(path, notes.append)
    state = unwrap(state, notes.append)
    fmt = detect_format(state)
    if fmt is None:
        sample = ", ".join(sorted(state)[:3])
        raise CheckpointError(
            f"{path.name} holds another model: its keys are like {sample}.",
            code="other_model",
            legal="a DC-AE in the original (efficientvit), diffusers or Offshoot's keys",
        )
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    if asked is not None:
        name, found = variant or find_variant(asked), asked
    else:
        release = None if hub_id is None else variant_of_release(hub_id)
        name, found = _config_beside(path, fmt, release, notes.append) or _recognise(state, fmt, path.name, notes.append)
    converted = state if fmt == "offshoot" else from_format(state, found, fmt)
    if fmt != "offshoot":
        notes.append(f"keys converted from the {fmt} format")
    return Pretrained(build(found, Layout(), converted, name=path.name), name, fmt, {}, notes)


def _config_beside(path: Path, fmt: str, release: str | None, note: Note) -> tuple[str | None, DCAEConfig] | None:
    """What the hub id or a `config.json` beside the weights says: diffusers' whole config, the original's release name."""
    file = path.parent / "config.json"
    data: Any = None
    if file.is_file():
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            note(f"config.json beside the weights could not be read ({error}); the shape comes from the tensors")
    data = data if isinstance(data, dict) else {}
    if release is None and fmt == "original":
        release = variant_of_release(str(data.get("model_name", "")))
    if fmt == "diffusers" and data.get("_class_name") == "AutoencoderDC":
        found = config_of_diffusers(data)
        note("shape read from config.json")
        return release or find_variant(found), found
    return (release, VARIANTS[release]) if release is not None else None


def _recognise(state: Mapping[str, Tensor], fmt: str, name: str, note: Note) -> tuple[str | None, DCAEConfig]:
    """The zoo's shape that fits, else the shape that keys and tensors tell; raises CheckpointError that names the nearest."""
    shapes = {key: value.to("meta") for key, value in state.items()}
    inferred = infer_config({key: tuple(value.shape) for key, value in shapes.items()})
    if inferred is not None:
        twins = [other for other, known in VARIANTS.items() if _told_by_tensors(known) == _told_by_tensors(inferred)]
        if len(twins) > 1:
            note(f"{twins[0]} has the same tensors as {', '.join(twins[1:])}: name the variant if it is one of these")
        found = VARIANTS[twins[0]] if twins else inferred
        if _count_differences(shapes, fmt, found) == 0:
            if not twins:
                note("a shape of its own, read from the tensors; activations and the scaling factor are assumed")
            return (twins[0] if twins else None), found
    wrong = {candidate: _count_differences(shapes, fmt, known) for candidate, known in VARIANTS.items()}
    nearest = min(wrong, key=lambda candidate: wrong[candidate])
    raise CheckpointError(
        f"{name} is a DC-AE of no known shape; the nearest is {nearest} ({wrong[nearest]} tensors differ).",
        code="unknown_shape",
        given=nearest,
        legal=sorted(VARIANTS),
        next="Name the variant to see the first difference, or put diffusers' config.json beside the file.",
    )


def _told_by_tensors(config: DCAEConfig) -> DCAEConfig:
    """A config with what no tensor tells set to one value: activations, scaling factor, facts of an empty first stage."""

    def told(coder: CoderConfig) -> CoderConfig:
        first = coder.first_stage
        seen: dict[str, Any] = {key: getattr(coder, key) for key in ("widths", "blocks", "scales", "norms")}
        same: dict[str, Any] = {key: (*value[first : first + 1] * first, *value[first:]) for key, value in seen.items()}
        same["acts"] = ("silu",) * coder.num_stages
        same["head_dim"] = coder.head_dim if any(coder.scales) else DEFAULT_HEAD_DIM
        same["expand"] = coder.expand if "evit" in coder.blocks else 4
        return replace(coder, **same, out_act="relu")

    return replace(config, encoder=told(config.encoder), decoder=told(config.decoder), scaling_factor=1.0)


def _count_differences(shapes: Mapping[str, Tensor], fmt: str, config: DCAEConfig) -> int:
    """Keys that are missing, unknown or of another shape."""
    with torch.device("meta"):
        expected = DCAE(config).state_dict()
    ours = shapes if fmt == "offshoot" else from_format(shapes, config, fmt)
    same = sum(key in ours and ours[key].shape == value.shape for key, value in expected.items())
    return len(expected) + len(ours) - 2 * same


def _read_torch(path: Path, note: Note) -> dict[str, Tensor]:
    """The state dict of a `torch.save` file, found under the usual names; code in it is refused, never executed."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.", code="unreadable", given=str(path), legal=LEGAL_FILE
        ) from error
    if not start.startswith(TORCH_FILE_STARTS):
        raise CheckpointError(
            f"{path.name} is no PyTorch checkpoint: it is neither a zip archive nor a pickle.",
            code="not_a_checkpoint",
            given=start.hex(),
            legal=LEGAL_FILE,
        )
    try:
        with warnings.catch_warnings():
            # Told once more below, where it matters: files of another pickle protocol than torch's may be refused.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search(r"GLOBAL|[Uu]nsupported", str(error)):
            raise _not_whole(path, error) from error
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"{path.name} holds Python code or objects besides weights{f' ({culprit[1]})' if culprit else ''}; "
            "it was not executed.",
            code="unsafe_pickle",
            given=culprit[1] if culprit else None,
            next="Save its state_dict alone, or better as safetensors.",
        ) from error
    except Exception as error:  # the reader meets arbitrary bytes, and raises whatever they lead it to
        raise _not_whole(path, error) from error
    for _ in range(3):
        inner = next((key for key in NESTED_KEYS if isinstance(data, dict) and isinstance(data.get(key), dict)), None)
        if inner is None:
            break
        note(f"weights taken from {inner!r} in the file")
        data = data[inner]
    flat = _flatten(data) if isinstance(data, dict) else {}
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path.name} holds no state dict.", code="not_a_checkpoint", given=type(data).__name__, legal=LEGAL_FILE
        )
    if len(tensors) < len(flat):
        left = sorted(set(flat) - set(tensors))
        note(f"left aside as no weights: {', '.join(left[:5])}{' and more' if len(left) > 5 else ''}")
    return tensors


def _not_whole(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split()).split(". ")[0].removesuffix(".")  # torch goes on with advice on its own options
    return CheckpointError(
        f"{path.name} is no whole PyTorch checkpoint: {reason}.",
        code="not_a_checkpoint",
        given=str(path),
        legal=LEGAL_FILE,
    )


def _flatten(data: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested state dicts (`{"encoder": {...}, "decoder": {...}}`) as one, with dotted names."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found.update(_flatten(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """(the weights file, the hub id that it came from or None)."""
    if source == "demo":
        return DEMO_FILE, None
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in WEIGHT_SUFFIXES:
            raise CheckpointError(f"{path.name} is no checkpoint.", code="not_a_checkpoint", legal=WEIGHT_SUFFIXES)
        return path, None
    if path.is_dir():
        return _in_folder(path), None
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
    return _in_folder(Path(folder)), source


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
