"""Old weight files in the present format: a folder of `.pt`, `.pth`, `.safetensors` becomes a folder of our safetensors files.

Loads torch, so pages never import it. Nothing is overwritten, and a file that cannot be read stops no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import CoreError
from dcaecore import CheckpointError, from_pretrained, save_model
from dcaecore.pretrained import WEIGHT_SUFFIXES


@dataclass(frozen=True)
class Rewritten:
    """What became of one file."""

    source: str
    target: str | None
    """None where it could not be read."""
    notes: tuple[str, ...]
    """What was found, assumed and converted; or why it could not be read."""


def rewrite_folder(folder: Path, target: Path) -> list[Rewritten]:
    """Rewrites every weights file of `folder` into `target`, by name. Raises CoreError for a folder without any."""
    files = (
        sorted(p for p in folder.expanduser().iterdir() if p.suffix in WEIGHT_SUFFIXES) if folder.expanduser().is_dir() else []
    )
    if not files:
        raise CoreError(
            f"There are no weights in {str(folder)!r}.", code="no_file", given=str(folder),
            legal=f"a folder of {', '.join(WEIGHT_SUFFIXES)} files",
        )  # fmt: skip
    target = target.expanduser()
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for file in files:
        place = target / f"{file.stem}.safetensors"
        if place.exists():
            made.append(Rewritten(str(file), None, (f"{place} is there already",)))
            continue
        try:
            found = from_pretrained(file)
        except CheckpointError as error:
            made.append(Rewritten(str(file), None, (error.message,)))
            continue
        state = found.model.state_dict()
        save_model(place, state, config=found.model.config, layout=found.model.layout, masks=found.masks)
        made.append(Rewritten(str(file), str(place), tuple(found.notes)))
    return made
