"""The script that sends a folder of offline runs on: one `wandb sync` a run, parents first.

`wandb sync` of a whole folder uploads runs side by side, and a child's artifact may then arrive before its parent's, which it is to
be linked to. The runs name their files by absolute paths: the script is for the same folder, once there is a way out.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

SCRIPT_NAME = "sync.sh"
_HEAD = """#!/bin/sh
# Sends these offline runs to W&B, parents first. A run that was sent before is left out; started again, it goes on where it stopped.
set -e
cd "$(dirname "$0")"
export WANDB_DATA_DIR="$PWD/data" WANDB_CACHE_DIR="$PWD/cache"
send() {
    [ -e "$1/run-$2.wandb.synced" ] || "${PYTHON:-python}" -m wandb sync "$1"
}
"""


def write_sync_script(folder: Path, runs: Sequence[tuple[str, str]]) -> Path:
    """Writes `sync.sh` for (job id, folder of its run within `folder`) pairs, in the order that they are to be sent."""
    lines = [f"send {shlex.quote(place)} {shlex.quote(job_id)}" for job_id, place in runs]
    path = folder / SCRIPT_NAME
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(_HEAD + "\n".join(lines) + "\n")
    partial.chmod(0o755)
    partial.replace(path)
    return path
