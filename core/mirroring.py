"""The service's part for the Weights & Biases mirror: where it stands, how it is set, and that it runs. No torch, no wandb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core import mirror
from core.mirror.views import ViewsReport, show_models
from core.settings import Settings
from store import Store


@dataclass(frozen=True)
class MirrorView:
    """What Home shows: `line` in words; `fixed` are the fields that the page cannot change."""

    mode: str
    project: str
    fixed: tuple[str, ...]
    num_sent: int
    num_waiting: int
    is_at_work: bool
    line: str
    problem: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Mirroring:
    """The part of `ModelManager` that keeps the mirror going: nothing of it waits for W&B."""

    store: Store
    settings: Settings

    def mirror_settings(self) -> Settings:
        """The settings with the page's choice in them."""
        return mirror.chosen_settings(self.store, self.settings)

    def mirror_view(self) -> MirrorView:
        """How far W&B is behind this store. Raises CoreError for a damaged choice."""
        chosen = self.mirror_settings()
        found = mirror.status(self.store, chosen.mirror, project=chosen.wandb_project)
        at_work = mirror.is_followed(self.store)
        return MirrorView(
            chosen.mirror,
            chosen.wandb_project,
            mirror.fixed_fields(self.settings),
            found.num_sent,
            found.num_waiting,
            at_work,
            _line(found, at_work),
            found.problem if found.sends or chosen.mirror == "online" else None,
        )

    def set_mirror(self, mode: str | None = None, project: str | None = None) -> MirrorView:
        """Chooses the mode or the project for this store, and starts what follows from it. Raises CoreError."""
        mirror.save_choice(self.store, self.settings, mode=mode, project=project)
        self.ensure_mirror()
        return self.mirror_view()

    def mirror_views(self, refs: Sequence[str]) -> ViewsReport:
        """A comparison as a W&B Report and a workspace view: files beside the store, saved to W&B where the mode sends.

        Takes some seconds: wandb is loaded in a process of its own. Raises CoreError, StoreError.
        """
        chosen = self.mirror_settings()
        return show_models(self.store, refs, chosen.mirror, project=chosen.wandb_project)

    def ensure_mirror(self) -> bool:
        """Starts the mirror's process where there is something to send to and none is there; True where one was started."""
        return mirror.ensure_follower(self.store, self.settings)


def _line(found: mirror.MirrorStatus, at_work: bool) -> str:
    """Where the mirror stands in one line."""
    runs = "1 run" if found.num_waiting == 1 else f"{found.num_waiting} runs"
    if found.mode == "off":
        return "The W&B mirror is off."
    if not found.sends:
        waits = "waits" if found.num_waiting == 1 else "wait"
        return f"W&B: {runs} {waits} for a key." if found.num_waiting else "W&B: no key on this machine; nothing waits."
    if not found.num_waiting:
        where = "written as offline runs" if found.mode == "offline" else "sent"
        return f"W&B: up to date, {found.num_sent} {where}."
    if found.problem is not None:
        when = f" Next try {found.next_try[11:16]} UTC." if found.next_try else ""
        return f"W&B: behind by {found.num_waiting}.{when}"
    return f"W&B: behind by {found.num_waiting}{', sending' if at_work else ''}."
