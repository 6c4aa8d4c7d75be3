"""Targets instead of rates: sensitivity and latency tables of the store, and the pruning that they lead to. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import store.jobs as jobs
from core.devices import default_device
from core.errors import CoreError
from core.settings import Settings
from core.solver.latency import LatencyTable
from core.solver.search import CostName, Solution, reach, solve
from core.solver.sensitivity import SensitivityTable
from core.specs import BenchmarkSpec, EvaluateSpec, PruneSpec, SensitivitySpec
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, sites
from store import JobRow, Store, get_model


@dataclass(frozen=True)
class Proposal:
    """A pruning that reaches a target, with what is predicted of it before any retraining."""

    spec: PruneSpec
    solution: Solution
    latency: LatencyTable | None
    """What the milliseconds are predicted by."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found, table = self.solution, self.latency
        timed = None if table is None else {**table.protocol, "errors": {coder: table.error(coder) for coder in table.coders}}
        return {
            "spec": self.spec.model_dump(mode="json"),
            "before": dict(found.before),
            "predicted": dict(found.after),
            "latency": timed,
        }

    def change(self, key: str) -> str:
        """How far a predicted figure is from what it is now."""
        return change_text(key, self.solution.before[key], self.solution.after[key])

    def latency_text(self) -> str:
        """How the milliseconds were measured and how far such predictions were off."""
        if self.latency is None:
            return "No latency profile: milliseconds are not predicted."
        p = self.latency.protocol
        errors = ", ".join(
            f"{coder} {error:.1%}" for coder in self.latency.coders if (error := self.latency.error(coder)) is not None
        )
        number = len(self.latency.checks) // max(1, len(self.latency.coders))
        return (
            f"Milliseconds: {p['device_name']} ({p['device']}, {p['threads']} threads), {p['dtype']}, {p['image_size']} px, "
            f"batch {p['batch_size']}; mean error over {number} other plans: {errors}."
        )


def change_text(key: str, before: float, after: float) -> str:
    """How far a figure is from another: decibels, or per cent."""
    return f"{after - before:+.2f} dB" if key.endswith("_db") else f"{after / before - 1:+.1%}"


class Planning:
    """The part of `ModelManager` that knows what was measured for planning."""

    store: Store
    settings: Settings

    def sensitivity_job(self, ref: str) -> JobRow | None:
        """The newest finished sensitivity measurement of a model."""
        model = get_model(self.store, ref).id
        found = jobs.list_jobs(self.store, ("done",), 1, operations=("sensitivity",), parent=model)
        return found[0] if found else None

    def sensitivity(self, ref: str) -> SensitivityTable | None:
        """What it measured; None where a model was never measured."""
        job = self.sensitivity_job(ref)
        return None if job is None else SensitivityTable.from_json(self._table(job))

    def profile_job(self, ref: str, device: str | None = None) -> JobRow | None:
        """The newest finished latency profile of this device (None: that of new jobs) that knows the model's widths.

        A model's own comes first, then one of a model of the same architecture that is nowhere narrower.
        """
        row, on = get_model(self.store, ref), device or default_device(self.settings.device)
        config, layout = DCAEConfig.from_json(row.config), Layout.from_json(row.layout)
        wider: JobRow | None = None
        for job in jobs.list_jobs(self.store, ("done",), None, device=on, operations=("profile",)):
            assert job.parent_model_id is not None
            profiled = get_model(self.store, job.parent_model_id, deleted=True)
            if profiled.config != row.config:
                continue
            known = Layout.from_json(profiled.layout)
            if known.digest() == layout.digest():
                return job
            if wider is None and all(known.width(site) >= layout.width(site) for site in sites(config).values()):
                wider = job
        return wider

    def latency(self, ref: str, device: str | None = None) -> LatencyTable | None:
        """What it measured; None where there is none for this device (None: that of new jobs)."""
        job = self.profile_job(ref, device)
        return None if job is None else LatencyTable.from_json(self._table(job))

    def reach(self, ref: str, cost: CostName, *, device: str | None = None) -> tuple[float, float]:
        """The least that a cost can become with every measured rate at its highest, and what it is now."""
        config, layout, table, _ = self._measured(ref)
        latency = self.latency(ref, device)
        return reach(config, layout, table, cost=cost, latency=latency, image_size=self._size(config, ref, latency))

    def _measured(self, ref: str) -> tuple[DCAEConfig, Layout, SensitivityTable, PruneSpec]:
        """A model's shape, its sensitivity, and how that was measured; raises CoreError where it never was."""
        row, job, table = get_model(self.store, ref), self.sensitivity_job(ref), self.sensitivity(ref)
        if job is None or table is None:
            raise CoreError(f"The sensitivity of {row.name} was never measured.", code="no_sensitivity", next="Measure it first.")
        how = SensitivitySpec.model_validate(job.spec).prune
        return DCAEConfig.from_json(row.config), Layout.from_json(row.layout), table, how

    def _size(self, config: DCAEConfig, ref: str, latency: LatencyTable | None) -> int:
        """Side of the images that MACs are counted for: the profile's, else the sensitivity's."""
        job = self.sensitivity_job(ref)
        measured = int(latency.protocol["image_size"]) if latency is not None else int(job.spec["image_size"]) if job else 128
        return max(measured, config.spatial_compression)

    def propose(
        self,
        ref: str,
        *,
        cost: CostName = "decode_ms",
        at_most: float | None = None,
        loss_db: float | None = None,
        locked: Sequence[str] = (),
        device: str | None = None,
    ) -> Proposal:
        """The pruning with the least predicted loss of which `cost` is at most `at_most`, or the cheapest that loses `loss_db`.

        Units are chosen and fitted as in the sensitivity measurement. Raises CoreError where something must be measured first, or
        where the target cannot be reached (the message says how near it comes).
        """
        config, layout, table, how = self._measured(ref)
        latency = self.latency(ref, device)
        found = solve(
            config, layout, table, cost=cost, at_most=at_most, loss_db=loss_db, latency=latency, locked=locked,
            image_size=self._size(config, ref, latency),
        )  # fmt: skip
        return Proposal(_spec(config, layout, found, how), found, latency)

    def conditions(self, ref: str, device: str | None = None) -> tuple[EvaluateSpec, BenchmarkSpec]:
        """What measures the model of a proposal under the conditions that it was predicted for: test images of the sensitivity's data
        and size, and the profile's sizes and dtype, or the benchmark's own where there is no profile."""
        job, latency = self.sensitivity_job(ref), self.latency(ref, device)
        how = SensitivitySpec() if job is None else SensitivitySpec.model_validate(job.spec)
        seen = EvaluateSpec(data=how.data, image_size=how.image_size)
        if latency is None:
            return seen, BenchmarkSpec(image_size=how.image_size)
        timed = {key: latency.protocol[key] for key in ("image_size", "batch_size", "dtype")}
        return seen, BenchmarkSpec.model_validate({**timed, "with_baseline": False})

    def _table(self, job: JobRow) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.store.blobs.read(job.result["table_digest"]))
        return found


def _spec(config: DCAEConfig, layout: Layout, found: Solution, how: PruneSpec) -> PruneSpec:
    """The measured way of choosing units, with a rate for each site; `rate` is the share of all units that goes."""
    known = sites(config)
    open_sites = {name for name, site in known.items() if site.kind in how.kinds and how.part in ("both", site.coder)}
    before = sum(layout.width(known[name]) for name in open_sites)
    after = sum(found.layout.width(known[name]) for name in open_sites)
    share = min(0.9, max(0.1, round(1 - after / before, 3)))
    rates = {name: rate for name, rate in found.rates.items() if name in open_sites}
    return how.model_copy(update={"rate": share, "site_rates": rates})
