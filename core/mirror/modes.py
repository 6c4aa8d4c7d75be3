"""Where the mirror sends to: mode, folder and W&B project, and whether a key is there."""

from __future__ import annotations

import netrc
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from core.errors import CoreError
from store import Store

MODES = ("auto", "off", "offline", "online")
DEFAULT_SERVER = "https://api.wandb.ai"
UNREACHABLE = "mirror_unreachable"
"""The code of an error that every other run would meet too."""
GONE = "mirror_gone"
"""The code of a run that was deleted at W&B: its id cannot be used there again."""
FOLDER_NAME = "mirror"
"""The mirror's folder within the store's, unless another is given."""


@dataclass(frozen=True)
class Target:
    """What a mode comes down to here. `sends` is None where nothing is written; `why` says so in one line.

    `problem` is set where the mode cannot do what it says (online without a key).

    `name` is the key of the store's `mirror` table: one for each offline folder, one for each project of a server.
    """

    mode: str
    sends: Literal["offline", "online"] | None
    name: str
    folder: Path
    project: str
    why: str
    problem: CoreError | None = None


def server() -> str:
    """The W&B server of this environment."""
    return os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER


def has_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether W&B would find a key (environment or netrc file) without asking. The key itself is not kept."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = environment.get("NETRC")
    paths = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    host = urlsplit(environment.get("WANDB_BASE_URL") or DEFAULT_SERVER).netloc
    for path in paths:
        try:
            found = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return True
    return False


def resolve_target(store: Store, mode: str, folder: Path | str | None = None, project: str = "offshoot") -> Target:
    """What `mode` means on this machine. Raises CoreError(mirror_mode)."""
    if mode not in MODES:
        raise CoreError(
            f"The mirror has no mode “{mode}”.",
            code="mirror_mode",
            given=mode,
            legal=list(MODES),
            next="Set OFFSHOOT_MIRROR, or `--mode`, to one of them.",
        )
    place = Path(folder).expanduser().absolute() if folder is not None else store.root / FOLDER_NAME
    inside = place.is_relative_to(store.root)
    offline = f"wandb-offline:{place.relative_to(store.root) if inside else place}"
    online = f"wandb-online:{urlsplit(server()).netloc}/{os.environ.get('WANDB_ENTITY', '')}/{project}"
    if mode == "offline":
        return Target(mode, "offline", offline, place, project, f"Offline runs are written to {place}.")
    if mode == "off":
        return Target(mode, None, online, place, project, "The mirror is off.")
    if has_key():
        return Target(mode, "online", online, place, project, f"Runs go to {server()}, project {project}.")
    if mode == "auto":
        why = "There is no W&B key on this machine: nothing is sent until there is one."
        return Target(mode, None, online, place, project, why)
    problem = CoreError(
        "The mirror is set to online, but there is no W&B key on this machine.",
        code="no_key",
        given=mode,
        legal="WANDB_API_KEY, or an entry in the netrc file",
        next="Run `wandb login`, or use the mode auto or offline. Nothing is lost: runs wait in the store.",
    )
    return Target(mode, None, online, place, project, problem.message, problem)


def check_reachable(timeout_s: float = 10.0) -> None:
    """Opens a connection to the server and closes it. Raises CoreError(mirror_unreachable).

    wandb itself tries for minutes, and then says that a deadline was exceeded. Behind a proxy there is nothing to try.
    """
    if getproxies():
        return
    where = urlsplit(server())
    try:
        with socket.create_connection((where.hostname or "", where.port or (443 if where.scheme == "https" else 80)), timeout_s):
            pass
    except OSError as error:
        raise CoreError(
            f"W&B cannot be reached at {server()}: {(error.strerror or str(error)).lower()}",
            code=UNREACHABLE,
            given=server(),
            legal="a W&B server that answers",
            next="Nothing is lost: the runs wait in the store. Check the network, and WANDB_BASE_URL if it is set.",
        ) from error


def check_folder(folder: Path) -> None:
    """Makes the mirror's folder and writes to it once. Raises CoreError(mirror_folder).

    Needed because wandb itself falls back to a temporary folder without an error.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CoreError(
            f"The mirror cannot write to {folder}: {error.strerror or error}.",
            code="mirror_folder",
            given=str(folder),
            legal="a folder that this user may write to, with space left",
            next="Choose another folder or change its permissions. Nothing is lost: runs wait in the store.",
        ) from error
