"""A model's card: what made it differ from its parent, in settings, widths and figures, and where its runs were mirrored. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import store as st
from core.mirror.copies import describe_copy
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, sites
from store import JobRow, Store


@dataclass(frozen=True)
class WidthChange:
    """A site whose width is not the parent's: units of the parent, and of the model."""

    site: str
    kind: str
    before: int
    after: int


class Cards:
    """The part of `ModelManager` that tells one model's story."""

    store: Store

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

    def making_job(self, ref: str) -> JobRow | None:
        """The job that made a model; None where it came without one."""
        row = st.get_model(self.store, ref)
        if row.job_id is None or not self.store.rows("SELECT 1 FROM job WHERE id=?", (row.job_id,)):
            return None
        return st.jobs.get_job(self.store, row.job_id)

    def copies(self, ref: str) -> list[str]:
        """Where runs of a model were sent, in words."""
        return [describe_copy(copy) for copy in st.mirrored_jobs(self.store, [st.get_model(self.store, ref).id])]
