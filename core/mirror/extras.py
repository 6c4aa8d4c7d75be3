"""What a run shows beside its curves: weight histograms of the model made, the table of baseline, parent and candidate, the log.

Free of wandb. The histograms read the weights through `dcaecore` (and so load torch): only the sender's process does that, and only
for a model that the job made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.compare import METRICS, compare
from store import JobRow, ModelRow, Store, baseline_of, get_models

NUM_BINS = 64
MAX_LOG_LINES = 2000
"""The last lines of a log that are sent; the whole log stays in the store."""
_ROUTINE = "step "
"""How the lines begin that repeat the curves."""


@dataclass(frozen=True)
class Histogram:
    """`NUM_BINS` counts between `NUM_BINS` + 1 edges; zeros stand apart, or a pruned layer would be one bar."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class PlainTable:
    """Columns and rows of plain values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Extras:
    """Beside the curves: histograms by part, tables by name, and what to say where one is missing."""

    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    tables: Mapping[str, PlainTable] = field(default_factory=dict)


def read_extras(store: Store, job: JobRow, subject: ModelRow | None, notes: list[str]) -> Extras:
    """All extras of a finished job; a note for weights that cannot be read."""
    tables = {}
    if subject is not None and subject.deleted is None:
        tables["comparison"] = comparison_table(store, subject)
    if lines := log_lines(store, job.id):
        tables["log"] = PlainTable(
            ("time", "level", "message"), tuple((one["time"], one["level"], one["message"]) for one in lines)
        )
    made = subject if job.model_id else None
    return Extras(weight_histograms(store, made, notes) if made is not None else {}, tables)


def comparison_table(store: Store, subject: ModelRow) -> PlainTable:
    """One row a figure: baseline, parent and candidate, and the candidate's change against both; nothing is compared across protocols."""
    family = {"baseline": baseline_of(store, subject.id).id, "parent": subject.parent_id, "candidate": subject.id}
    known = get_models(store, [ref for ref in family.values() if ref])
    shown = {role: ref for role, ref in family.items() if ref in known and known[ref].deleted is None}
    found = compare(store, list(dict.fromkeys(shown.values())))
    rows: list[tuple[Any, ...]] = [("id", "", *(family[role] for role in family), None, None)]
    rows += [("name", "", *(known[ref].name if ref in known else None for ref in family.values()), None, None)]
    for key, metric in METRICS.items():
        values = {role: found.figures[ref][key].value for role, ref in shown.items()}
        if all(value is None for value in values.values()):
            continue
        change = found.figures[subject.id][key]
        rows.append((key, metric.unit, *(values.get(role) for role in family), change.against_parent, change.against_baseline))
    return PlainTable(("figure", "shown_in", *family, "change_from_parent", "change_from_baseline"), tuple(rows))


def log_lines(store: Store, job_id: str) -> list[dict[str, str]]:
    """Warnings, errors and milestones of a job's log; not the lines that repeat the curves."""
    path = store.job_folder(job_id) / "log.jsonl"
    if not path.exists():
        return []
    found = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a line that a killed job left half-written
        if line["level"] != "info" or not line["message"].startswith(_ROUTINE):
            found.append(line)
    return found[-MAX_LOG_LINES:]


def weight_histograms(store: Store, model: ModelRow, notes: list[str]) -> dict[str, Histogram]:
    """Histograms of the non-zero weights of each part of a model, and of `all`; nothing of one whose weights are gone."""
    if model.deleted is not None or model.blob_digest is None or not store.blobs.exists(model.blob_digest):
        return {}
    from dcaecore import DcaeError, load_model, read_header  # torch, in the sender's process only
    from dcaecore.freezing import part_names

    path = store.blobs.path(model.blob_digest)
    try:
        read_header(path)
        loaded = load_model(path)
    except DcaeError as error:
        notes.append(f"There are no weight histograms of {model.name}: {error.message}.")
        return {}
    parts: dict[str, np.ndarray] = {}
    for name in part_names(loaded.model.config):
        weights = [p.detach().numpy().ravel() for p in loaded.model.get_submodule(name).parameters() if p.ndim > 1]
        if weights:
            parts[name] = np.concatenate(weights)
    if parts:
        parts["all"] = np.concatenate(list(parts.values()))
    return {name: made for name, values in parts.items() if (made := histogram(values)) is not None}


def histogram(values: Sequence[float] | np.ndarray) -> Histogram | None:
    """Of the finite values that are not zero; None where there is none."""
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found) & (found != 0)]
    if not len(found):
        return None
    counts, edges = np.histogram(found, bins=NUM_BINS)
    return Histogram(tuple(counts.tolist()), tuple(edges.tolist()))
