"""Training checkpoints: a folder that holds all that a run needs to go on bit for bit.

    model.safetensors  ema.safetensors  best.safetensors  optimizer.safetensors  images.safetensors  state.json  digest

`digest` is written last: a folder without it, or whose digest does not fit, is not a checkpoint. A folder is written under a
partial name and renamed, so the older checkpoint stays whole whatever happens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcaecore.errors import CheckpointError

FORMAT = 1
PARTS = ("model", "ema", "best", "optimizer", "images")
"""Files of tensors; one that would be empty is not there."""


@dataclass
class TrainState:
    """Everything that changes while training."""

    step: int
    """Steps done."""
    model: dict[str, Tensor]
    ema: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """`<parameter>:<moment>` -> tensor."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """Figures of each training image: `dcaecore.image_losses`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values: best figure and step, skipped rows, thread count."""


def save_checkpoint(folder: Path, state: TrainState) -> Path:
    """Writes `folder/step_<8 digits>`, whole or not at all; returns it."""
    target = folder / f"step_{state.step:08d}"
    partial = folder / f".partial-{os.getpid()}-{state.step}"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        for name in PARTS:
            tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(state, name).items()}
            if tensors:
                save_file(tensors, partial / f"{name}.safetensors")
        facts = {"format": FORMAT, "step": state.step, **state.facts}
        (partial / "state.json").write_text(json.dumps(facts, sort_keys=True))
        _sync(partial)
        (partial / "digest").write_text(_digest(partial))
        _sync(partial)
        if is_whole(target):
            # A resumed run has come to the same step, and so to the same bits: removing the old one first would risk both.
            shutil.rmtree(partial)
            return target
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of step {state.step} could not be written: {error}",
            code="checkpoint_write",
            given=str(target),
            next="Free some disk space; the older checkpoint is whole.",
        ) from error
    return target


def load_checkpoint(path: Path) -> TrainState:
    """Reads a checkpoint folder; raises CheckpointError where it is damaged or of a newer format."""
    if not is_whole(path):
        raise CheckpointError(f"{path.name} is not a whole checkpoint.", code="checkpoint_damaged", given=str(path))
    facts = json.loads((path / "state.json").read_text())
    version = facts.pop("format")
    if version > FORMAT:
        raise CheckpointError(
            f"{path.name} was written by a newer version.", code="checkpoint_format", given=version, legal=f"formats 1 to {FORMAT}",
            next="Update Offshoot.",
        )  # fmt: skip
    parts = {name: load_file(path / f"{name}.safetensors") if (path / f"{name}.safetensors").exists() else {} for name in PARTS}
    return TrainState(step=facts.pop("step"), facts=facts, **parts)


def is_whole(path: Path) -> bool:
    """Whether a folder is a checkpoint whose files are as they were written."""
    digest = path / "digest"
    return digest.exists() and digest.read_text() == _digest(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps in a job's folder, or None."""
    if not folder.exists():
        return None
    return next((p for p in sorted(folder.glob("step_*"), reverse=True) if is_whole(p)), None)


def clean_checkpoints(folder: Path, *, keep: int = 2, every: int = 0, spare: Collection[str] = ()) -> list[Path]:
    """Removes checkpoints but for the newest `keep`, those of every `every`-th step (0: none), and the names in `spare`.

    The best weights need no rule: each checkpoint carries them. Returns what was removed.
    """
    old = [p for p in sorted(folder.glob("step_*"))[:-keep] if p.name not in spare and not (every and step_of(p) % every == 0)]
    for path in [*old, *folder.glob(".partial-*")]:  # what a killed attempt left half-written
        shutil.rmtree(path)
    return old


def step_of(path: Path) -> int:
    """The step of a checkpoint folder, by its name."""
    return int(path.name.removeprefix("step_"))


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.name != "digest"):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as named tensors; `names` maps `id(parameter)` to its name."""
    found: dict[str, Tensor] = {}
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if isinstance(value, Tensor):
                found[f"{names[id(parameter)]}:{key}"] = value.detach().clone()
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Moments come back in their parameter's own memory order: fused kernels walk both as flat memory.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition(":")
        by_name.setdefault(name, {})[moment] = value
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = by_name.get(names[id(parameter)])
            if moments is not None:
                optimizer.state[parameter] = {key: _like(value, parameter) for key, value in moments.items()}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
