"""One finished job as what W&B will hold of it: a plain record read from the store, free of wandb.

`{model_type}_{pruning_method}_{sparsity}_{time}` names a run; the sparsity is the ratio asked of the nearest pruning in
the model's line. Runs are grouped by baseline. A W&B artifact's identity is its content, and two models may have equal
weights, so each artifact holds the model's identity (`model.json`) beside its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import store.jobs as jobs
from core.kept_plans import spec_of_choice
from core.names import model_name
from core.specs import PruneSpec
from store import JobRow, ModelRow, Store, ancestors, baseline_of, get_models
from store.mirror import Point, evaluations, points
from store.scores import images, measurements

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
"""What W&B refuses in the name of an artifact."""


@dataclass(frozen=True)
class ArtifactRecord:
    """A model as W&B keeps it. `identity` never changes and is part of the content; `metadata` is shown beside it."""

    name: str
    description: str
    identity: dict[str, Any]
    metadata: dict[str, Any]
    blob_digest: str


@dataclass(frozen=True)
class Picture:
    """A stored PNG with its caption."""

    caption: str
    digest: str


@dataclass(frozen=True)
class RunRecord:
    """One job. `summary` is flat; `uses` are the models that it worked on, `makes` the one that it made.

    `started` and `ended` are seconds since 1970; `points` are all of the store, rising by step.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    started: float
    ended: float
    points: list[Point]
    summary: dict[str, Any]
    pictures: list[Picture]
    uses: list[ArtifactRecord]
    makes: ArtifactRecord | None
    notes: list[str] = field(default_factory=list)
    about: str = ""
    """What leads from the run back to the record: W&B shows it as the run's notes."""


def subject_of(store: Store, job: JobRow) -> ModelRow | None:
    """The model that a job made, else the one that it worked on; tombstones included."""
    wanted = job.model_id or job.parent_model_id
    return get_models(store, [wanted]).get(wanted) if wanted else None


def jobs_of(store: Store, model_ids: Sequence[str]) -> list[str]:
    """The finished jobs that made, judged or timed some models."""
    return [
        str(job)
        for (job,) in store.rows(
            "SELECT id FROM job WHERE state='done' AND coalesce(model_id, parent_model_id) IN (SELECT value FROM json_each(?))"
            " ORDER BY id",
            (json.dumps(list(model_ids)),),
        )
    ]


def run_name(store: Store, job: JobRow) -> str:
    """The run's name; a job that bears such a name already keeps it."""
    when = datetime.fromisoformat(job.created).astimezone(UTC)
    subject = subject_of(store, job)
    if subject is None:
        return model_name("job", job.operation, when=when)
    method, ratio = "baseline", 0.0
    for model in [subject, *ancestors(store, subject.id)]:
        if model.spec.get("operation") == "prune":
            chose = spec_of_choice(store, model.spec)
            asked = chose.get("rate") if PruneSpec.applies("rate", chose) else None
            method = str(chose["method"])
            ratio = float(asked if asked is not None else model.facts.get("sparsity", 0.0))
            break
    made = model_name(subject.family, method, ratio, when=when)
    return job.name if job.name.startswith(made.rpartition("_")[0] + "_") else made


def read_run(store: Store, job_id: str) -> RunRecord:
    """Everything of a finished job that is mirrored."""
    job = jobs.get_job(store, job_id)
    subject = subject_of(store, job)
    made = subject if job.model_id else None
    baseline = baseline_of(store, subject.id) if subject is not None else None
    notes: list[str] = []
    used = [parent for _, parent in made.parents] if made is not None else [job.parent_model_id] if job.parent_model_id else []
    rows = get_models(store, dict.fromkeys(used))
    uses = [record for row in rows.values() if (record := _artifact(store, row, notes)) is not None]
    makes = _artifact(store, made, notes) if made is not None else None
    judged = evaluations(store, job.id)
    timed = [row for row in measurements(store, subject.id) if row.job_id == job.id] if subject is not None else []
    config = {
        "operation": job.operation,
        "spec": job.spec,
        "job_id": job.id,
        "job_name": job.name,
        "device": job.device,
        "attempt": job.attempt,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "depends_on": list(job.depends_on),
        "parent_ids": list(rows),
        "baseline_id": baseline.id if baseline is not None else None,
        "baseline_name": baseline.name if baseline is not None else None,
        "model": _about(subject) if subject is not None else None,
        "made_model_id": job.model_id,
        "protocols": {f"{row.split}/{row.model_id}": row.protocol for row in judged},
        "measurements": [{"device": row.device, "dtype": row.dtype, **row.settings} for row in timed],
    }
    summary: dict[str, Any] = {f"model/{name}": value for name, value in (subject.facts if subject else {}).items()}
    summary |= {f"result/{name}": value for name, value in job.result.items() if isinstance(value, str | bool | int | float)}
    for row in judged:
        where = row.split if subject is not None and row.model_id == subject.id else f"{row.split}/{row.model_id}"
        summary |= {f"{where}/{name}": value for name, value in row.means.items()}
    for timing in timed:
        for model_id, figures in timing.models.items():
            summary |= {f"benchmark/{model_id}/{name}": value for name, value in _flat(figures).items()}
    return RunRecord(
        id=job.id,
        name=run_name(store, job),
        group=baseline.id if baseline is not None else "",
        job_type=job.operation,
        tags=tuple(dict.fromkeys(tag[:64] for tag in (job.operation, *(subject.tags if subject is not None else ())))),
        config=config,
        started=datetime.fromisoformat(job.started or job.created).timestamp(),
        ended=datetime.fromisoformat(job.ended or job.started or job.created).timestamp(),
        points=points(store, job.id),
        summary=summary,
        pictures=_pictures(store, judged, notes),
        uses=uses,
        makes=makes,
        notes=notes,
        about=_way_back(job, subject),
    )


def _way_back(job: JobRow, subject: ModelRow | None) -> str:
    """How to find the record of a run in the store that it came from."""
    model = f"`python -m core show {subject.id}` tells all about its model, " if subject is not None else ""
    return f"Offshoot has the record of this run: {model}`python -m core jobs {job.id}` of its job."


def _about(model: ModelRow) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "kind": model.kind,
        "family": model.family,
        "config": model.config,
        "weights_digest": model.weights_digest,
        "parents": [list(pair) for pair in model.parents],
        "dataset": model.dataset,
    }


def _artifact(store: Store, model: ModelRow, notes: list[str]) -> ArtifactRecord | None:
    """None, with a note, for a model that was deleted or has lost its weights: its ids stand in the config all the same."""
    if model.deleted is not None or model.blob_digest is None or not store.blobs.exists(model.blob_digest):
        notes.append(f"The weights of {model.name} ({model.id}) are not in the store any more; only its id was mirrored.")
        return None
    identity = {
        "id": model.id,
        "kind": model.kind,
        "family": model.family,
        "spec": model.spec,
        "parents": sorted(list(pair) for pair in model.parents),
        "weights_digest": model.weights_digest,
        "dataset": model.dataset,
    }
    metadata = {
        **_about(model),
        "parent_ids": [parent for _, parent in model.parents],
        "baseline_id": baseline_of(store, model.id).id,
        "job_id": model.job_id,
        "created": model.created,
        "facts": model.facts,
    }
    return ArtifactRecord(artifact_name(model), model.name, identity, metadata, model.blob_digest)


def artifact_name(model: ModelRow) -> str:
    """One collection a model, so that its `latest` never points to another."""
    return _NOT_IN_NAMES.sub("-", f"{model.family}-{model.id}")


def identity_text(record: ArtifactRecord) -> str:
    """The same bytes whenever and by whichever run a model is sent: W&B tells artifacts apart by content."""
    return json.dumps(record.identity, sort_keys=True, separators=(",", ":"))


def _pictures(store: Store, judged: list[Any], notes: list[str]) -> list[Picture]:
    found = []
    for row in judged:
        for image in images(store, row.model_id, protocol_id=row.protocol_id):
            if store.blobs.exists(image.digest):
                found.append(Picture(f"{image.kind} {image.index}", image.digest))
            else:
                notes.append(f"The picture “{image.kind} {image.index}” is not in the store any more.")
    return found


def _flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
