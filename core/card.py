"""A model's card: what made it differ from its parent, in settings, widths and figures, and where its runs were mirrored. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import store as st
from core.compare import Comparison
from core.mirror.copies import describe_copy
from core.specs import SPECS
from core.system_figures import PREFIX
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, sites
from store import JobRow, ModelRow, Store, metrics


@dataclass(frozen=True)
class WidthChange:
    """A site whose width is not the parent's: units of the parent, and of the model."""

    site: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class SettingChange:
    """A setting that is not what it was when this was last done in the model's line, or not the default where it never was."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class MadeBy:
    """How the settings that made a model differ; `since` is the ancestor that was made by the same operation, None for the defaults."""

    operation: str
    since: ModelRow | None
    changes: list[SettingChange]


class Cards:
    """The part of `ModelManager` that tells one model's story."""

    store: Store
    ancestry: Callable[..., list[ModelRow]]
    spec_line: Callable[..., str]
    compare: Callable[..., Comparison]
    pictures: Callable[..., list[tuple[bytes, bytes]]]
    log: Callable[..., list[dict[str, str]]]

    def width_changes(self, ref: str) -> list[WidthChange]:
        """Sites of which units went; empty for a baseline, and where the shapes are of different families."""
        row = st.get_model(self.store, ref)
        if row.parent_id is None:
            return []
        parent = st.get_model(self.store, row.parent_id, deleted=True)
        config = DCAEConfig.from_json(row.config)
        if DCAEConfig.from_json(parent.config) != config:
            return []
        before, after = Layout.from_json(parent.layout), Layout.from_json(row.layout)
        found = [WidthChange(name, site.kind, before.width(site), after.width(site)) for name, site in sites(config).items()]
        return [change for change in found if change.before != change.after]

    def setting_changes(self, ref: str) -> MadeBy:
        """The settings that made a model, against those of the nearest ancestor that was made alike, else against the defaults."""
        *above, row = self.ancestry(ref)
        operation = str(row.spec.get("operation", row.kind))
        since = next((model for model in reversed(above) if model.spec.get("operation") == operation), None)
        known = SPECS.get(operation)
        before = since.spec if since is not None else known().model_dump(mode="json") if known is not None else {}
        names = [name for name in row.spec if name != "operation" and row.spec[name] != before.get(name)]
        return MadeBy(operation, since, [SettingChange(name, before.get(name), row.spec[name]) for name in names])

    def making_job(self, ref: str) -> JobRow | None:
        """The job that made a model; None where it came without one."""
        row = st.get_model(self.store, ref)
        if row.job_id is None or not self.store.rows("SELECT 1 FROM job WHERE id=?", (row.job_id,)):
            return None
        return st.jobs.get_job(self.store, row.job_id)

    def copies(self, ref: str) -> list[str]:
        """Where runs of a model were sent, in words."""
        return [describe_copy(copy) for copy in st.mirrored_jobs(self.store, [st.get_model(self.store, ref).id])]

    def machine_used(self, ref: str) -> str:
        """What a job asked of its machine, in one line: the mean load, the most memory; empty where nothing was sampled."""
        job_id = st.jobs.get_job(self.store, ref).id
        found = {name: metrics.series(self.store, job_id, f"{PREFIX}{name}")[1] for name in _USED}
        told = [_USED[name](values) for name, values in found.items() if values]
        return ", ".join(told)

    def card(self, ref: str) -> dict[str, Any]:
        """A model's whole card as plain values: what `show` prints and a program reads."""
        row = st.get_model(self.store, ref)
        job = self.making_job(row.id)
        settings = self.setting_changes(row.id)
        (figures,) = self.compare([row.id]).to_json()["models"]
        return {
            **row.to_json(),
            "figures": {key: figure for key, figure in figures["figures"].items() if figure["value"] is not None},
            "chain": [{"id": step.id, "name": step.name, "made_by": self.spec_line(step.id)} for step in self.ancestry(row.id)],
            "settings": {
                "operation": settings.operation,
                "since": settings.since.id if settings.since is not None else None,
                "changes": [asdict(change) for change in settings.changes],
            },
            "widths": [asdict(change) for change in self.width_changes(row.id)],
            "job": None
            if job is None
            else {**job.to_json(), "machine": self.machine_used(job.id), "log": self.log(job.id, last=20)},
            "reconstructions": len(self.pictures(row.id)),
            "mirrored": self.copies(row.id),
        }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


_USED: dict[str, Callable[[list[float]], str]] = {
    "process_cores": lambda values: f"{_mean(values):.1f} cores",
    "process_memory_gib": lambda values: f"{max(values):.2f} GiB of memory at most",
    "gpu_busy_ratio": lambda values: f"GPU {_mean(values):.0%} busy",
    "gpu_memory_gib": lambda values: f"{max(values):.2f} GiB of GPU memory at most",
    "gpu_power_w": lambda values: f"{_mean(values):.0f} W",
}
