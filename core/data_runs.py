"""The part of `ModelManager` that knows test runs: any model on any data set, shown beside the pinned figures. No torch.

A run's figures stand under a split of their own in the store, so that nothing that ranks or compares models takes them for an
evaluation; whoever wants them asks for one run by its protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import store.jobs as jobs
from core.augmentations import source_of
from core.checks import SpecLike, checked
from core.compare import METRICS, Comparison, Figure, compare, relative_change
from core.errors import CoreError
from core.settings import Settings
from core.specs import DataRunSpec
from dcaecore.data import open_frames
from store import JobRow, ScoresRow, Store, baseline_of, get_model
from store.scores import RUN, runs


@dataclass(frozen=True)
class DataRun:
    """One protocol of test runs: its images, and the figures of each model that was run on them."""

    id: str
    protocol: dict[str, Any]
    created: str
    """Of the newest of them."""
    models: dict[str, ScoresRow]

    @property
    def title(self) -> str:
        """The images in a few words."""
        p = self.protocol
        part = "" if p["run"] == "all" else f", {p['run']} part"
        return f"{p['num_images']} images of {p['source']}{part}, {p['image_size']} px, {p['dtype']}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"id": self.id, "protocol": self.protocol, "models": {ref: row.means for ref, row in self.models.items()}}


class DataRuns:
    """Test runs."""

    store: Store
    settings: Settings
    _submit: Callable[..., JobRow]
    _check_size: Callable[[str, int], None]

    def run_on_data(self, refs: Sequence[str], spec: SpecLike = None, *, device: str | None = None) -> list[JobRow]:
        """Submits one test run for each model. Raises before the first job: CoreError for a spec, DataError for data that is not there."""
        given, rows = checked(DataRunSpec, spec), [get_model(self.store, ref) for ref in refs]
        for row in rows:
            self._check_size(row.id, given.image_size)
        if given.data.kind in ("folder", "parquet"):
            open_frames(source_of(given.data), cache_folder=self.settings.data_folder)
        return [self._submit(given, row.id, device=device, name="test run") for row in rows]

    def data_runs(self, refs: Sequence[str]) -> list[DataRun]:
        """Every data set that any of the models was run on, the newest first."""
        found: dict[str, DataRun] = {}
        for row in runs(self.store, [get_model(self.store, ref).id for ref in refs]):
            found.setdefault(row.protocol_id, DataRun(row.protocol_id, row.protocol, row.created, {})).models[row.model_id] = row
        return list(found.values())

    def runs_under_way(self, refs: Sequence[str]) -> list[JobRow]:
        """Test runs and inferences of some models that have not ended, the next one first."""
        return [
            job
            for ref in refs
            for job in jobs.list_jobs(self.store, jobs.ACTIVE, None, operations=("testrun", "infer"), parent=ref)[::-1]
        ]

    def failed_runs(self, refs: Sequence[str]) -> list[JobRow]:
        """Test runs and inferences that failed, where they are the last of their kind of a model."""
        last = [
            jobs.list_jobs(self.store, None, 1, operations=(operation,), parent=ref)
            for ref in refs
            for operation in ("testrun", "infer")
        ]
        return [job for found in last for job in found if job.state == "failed"]

    def compare_on(self, refs: Sequence[str] | Comparison, run: str) -> Comparison:
        """The comparison with the quality figures of one test run (its id or the beginning of it) in place of the pinned ones.

        Costs and facts stay. Raises CoreError for a run that none of the models was in.
        """
        pinned = refs if isinstance(refs, Comparison) else compare(self.store, refs)
        ids = [model.id for model in pinned.models]
        kin = {ref: (get_model(self.store, ref).parent_id, baseline_of(self.store, ref).id) for ref in ids}
        everyone = list(dict.fromkeys([*ids, *(other for pair in kin.values() for other in pair if other)]))
        known = [one for one in self.data_runs(everyone) if {*ids} & {*one.models}]
        chosen = [one for one in known if run and one.id.startswith(run)]
        if len(chosen) != 1:
            raise CoreError(
                f"None of these models has a test run {run!r}." if not chosen else f"{run!r} is more than one test run.",
                code="run", given=run, legal=[f"{one.id}: {one.title}" for one in known],
            )  # fmt: skip
        (one,) = chosen
        figures = {ref: dict(own) for ref, own in pinned.figures.items()}
        for ref, (parent, baseline) in kin.items():
            for key, metric in METRICS.items():
                if metric.source == "scores":
                    value, above, first = (_mean(one, other, key) for other in (ref, parent, baseline))
                    figures[ref][key] = Figure(
                        metric, value, relative_change(metric, value, above),
                        None if baseline == ref else relative_change(metric, value, first),
                    )  # fmt: skip
        lacking = [model.name for model in pinned.models if model.id not in one.models]
        notes = [note for note in pinned.notes if "evaluated on other images" not in note]
        if lacking:
            notes.append(f"Not run on these images: {', '.join(lacking)}.")
        return replace(pinned, figures=figures, protocol=one.protocol, notes=notes, split=RUN)


def _mean(run: DataRun, ref: str | None, key: str) -> float | None:
    row = run.models.get(ref) if ref is not None else None
    return None if row is None else row.means.get(key)
