"""The Weights & Biases mirror: a one-way replay of the store, job by job, that the local record never waits for.

- Each finished job becomes one W&B run, each model one artifact, each edge of the family tree a use of the parent's
  artifact. The store is only read; what was sent where is remembered in its `mirror` table, so a mirror that was off,
  broken or killed catches up, and nothing is sent twice.
- wandb is imported by `core.mirror.sender` only, which runs as a process of its own with a time limit a run. Nothing
  that a page imports loads it.
- A process of its own does it (`core.mirror.following`), with back-off where it fails; a verb may ask for a pass at once.
- Modes: `off`; `offline` writes W&B's own offline runs into a folder, for machines without a way out; `online` sends;
  `auto` sends where a W&B key is found, and else writes nothing and says how many runs wait.
"""

from core.mirror.choice import chosen_settings, fixed_fields, save_choice
from core.mirror.following import ensure_follower, is_followed
from core.mirror.modes import MODES, Target, resolve_target
from core.mirror.replay import MirrorReport, MirrorStatus, mirror_branch, status, sync

__all__ = [
    "MODES",
    "MirrorReport",
    "MirrorStatus",
    "Target",
    "chosen_settings",
    "ensure_follower",
    "fixed_fields",
    "is_followed",
    "mirror_branch",
    "resolve_target",
    "save_choice",
    "status",
    "sync",
]
