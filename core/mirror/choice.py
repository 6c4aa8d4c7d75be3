"""What was chosen for the mirror on the page: a small file beside the store, below the environment and `offshoot.toml`."""

from __future__ import annotations

import json
import os
from typing import Any

from core.errors import CoreError
from core.mirror.modes import MODES
from core.settings import Settings
from store import Store

FILE_NAME = "mirror.json"
FIELDS = ("mirror", "wandb_project")


def fixed_fields(settings: Settings) -> tuple[str, ...]:
    """Those of `FIELDS` that an option, the environment or `offshoot.toml` sets: the page cannot change them."""
    return tuple(name for name in FIELDS if name in settings.model_fields_set)


def chosen_settings(store: Store, settings: Settings) -> Settings:
    """The settings with the page's choice where nothing else sets them. Raises CoreError(mirror_choice) for a damaged file."""
    fixed = fixed_fields(settings)
    return settings.model_copy(update={name: value for name, value in _read(store).items() if name not in fixed})


def save_choice(store: Store, settings: Settings, *, mode: str | None = None, project: str | None = None) -> Settings:
    """Keeps a choice for this store; returns what holds now. Raises CoreError(mirror_mode, mirror_project, mirror_fixed)."""
    given = {"mirror": mode, "wandb_project": project}
    wanted = {name: value for name, value in given.items() if value is not None}
    if mode is not None and mode not in MODES:
        raise CoreError(f"The mirror has no mode “{mode}”.", code="mirror_mode", given=mode, legal=list(MODES))
    if project is not None:
        check_project(project)
    for name in wanted:
        if name in fixed_fields(settings) and wanted[name] != getattr(settings, name):
            raise CoreError(
                f"{name} is set to “{getattr(settings, name)}” elsewhere.",
                code="mirror_fixed",
                given=wanted[name],
                next=f"Take OFFSHOOT_{name.upper()} out of the environment (or {name} out of offshoot.toml) to choose it here.",
            )
    kept = {**_read(store), **wanted}
    partial = store.root / f"{FILE_NAME}.{os.getpid()}"
    partial.write_text(json.dumps(kept))
    partial.replace(store.root / FILE_NAME)
    return chosen_settings(store, settings)


def check_project(name: str) -> None:
    """Raises CoreError(mirror_project) for a name that W&B refuses."""
    if not name.strip() or len(name) > 128 or any(character in "/\\#?%:" for character in name):
        raise CoreError(
            f"W&B refuses the project name “{name}”.",
            code="mirror_project",
            given=name,
            legal="1 to 128 characters, none of / \\ # ? % :",
            next="Choose another name.",
        )


def _read(store: Store) -> dict[str, Any]:
    path = store.root / FILE_NAME
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {name: str(found[name]) for name in FIELDS if name in found}
    except (ValueError, TypeError) as error:
        raise CoreError(
            f"{path} cannot be read: {error}.",
            code="mirror_choice",
            given=str(path),
            next="Delete the file, then choose the mirror's mode again.",
        ) from error
