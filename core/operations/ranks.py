"""A retraining in several processes: what rank 0 tells the others, and what they do. They never open the store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import CoreError
from core.operations.training_images import shared_images
from core.operations.training_settings import train_settings
from core.settings import Settings
from core.specs import RetrainSpec
from dcaecore import DCAE, World, joined, load_model, train
from store import ModelRow, Store


@dataclass(frozen=True)
class Task:
    """All that a rank needs besides the images, which it reads itself."""

    spec: dict[str, Any]
    parent: bytes
    teacher: bytes | None
    losses: bytes | None

    @classmethod
    def of(cls, spec: RetrainSpec, store: Store, parent: ModelRow, teacher: ModelRow | None) -> Task:
        """From the store, with the models' files as they lie there."""
        files = [None if row is None else store.blobs.read(str(row.blob_digest)) for row in (parent, teacher)]
        assert files[0] is not None
        return cls(spec.model_dump(mode="json"), files[0], files[1], loss_table(spec, store))


@dataclass(frozen=True)
class Aside:
    """In place of a job's context: a rank that tells nobody anything."""

    settings: Settings

    def progress(self, fraction: float, message: str = "", eta_s: float | None = None, *, force: bool = False) -> None: ...

    def log(self, level: str, message: str) -> None: ...


def rank_device(device: str) -> str:
    """This process's own device: of the GPUs from the job's on, the one at its place."""
    if not device.startswith("cuda"):
        return device
    return f"cuda:{int(device.partition(':')[2] or 0) + int(os.environ.get('LOCAL_RANK', '0'))}"


def assist(settings: Settings, device: str) -> None:
    """The life of a rank other than 0: learns the task, trains its share of each batch, and ends when rank 0 does."""
    own = rank_device(device)
    with joined(own) as world:
        task: Task = world.share(None)  # type: ignore[assignment]
        spec = RetrainSpec.model_validate(task.spec)
        with TemporaryDirectory() as scratch:
            parent, masks = _model(task.parent, Path(scratch))
            teacher = None if task.teacher is None else _model(task.teacher, Path(scratch))[0]
        images = shared_images(spec, Aside(settings), world, task.losses)
        train(parent, train_settings(spec), images.stream, images.pinned, masks=masks, device=own, teacher=teacher, world=world)


def _model(raw: bytes, folder: Path) -> tuple[DCAE, dict[str, Any]]:
    path = folder / "model.safetensors"
    path.write_bytes(raw)
    loaded = load_model(path)
    return loaded.model, loaded.masks


def loss_table(spec: RetrainSpec, store: Store) -> bytes | None:
    """The inspection that images are drawn by; None where none is asked for. Raises CoreError where it is gone."""
    if spec.draw_by != "loss":
        return None
    if not spec.loss_table or not store.blobs.exists(spec.loss_table):
        raise CoreError(
            "The inspection that images are drawn by is not in the store.", code="no_inspection", given=spec.loss_table,
            next="Look at every training image of the parent first (inspect).",
        )  # fmt: skip
    return store.blobs.read(spec.loss_table)


def tell(world: World, spec: RetrainSpec, store: Store, parent: ModelRow, teacher: ModelRow | None) -> None:
    """Rank 0 tells the others their task; nothing to do for a world of one."""
    if world.size > 1:
        world.share(Task.of(spec, store, parent, teacher))
