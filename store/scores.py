"""Figures of models: evaluations (means, per image, pictures) and measurements (benchmarks).

Every figure stands under a protocol (pinned images with their hash, size, dtype, versions), and figures compare only
within one; a measurement holds several models that ran interleaved, and ratios are taken only within it. A new
evaluation of the same model, protocol and split replaces the old one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session

from store.db import Store, execute
from store.errors import StoreError
from store.identity import ID_DIGITS, canonical_bytes, digest_of, now
from store.metrics import pack, unpack
from store.model_rows import resolve_model
from store.models import Measurement
from store.references import need_blob

RUN = "run"
"""Stands for a split where a model was tried on other images than its pinned ones: never read as an evaluation."""
SPLITS = ("train", "validation", "test", RUN)
IMAGE_KINDS = ("original", "reconstruction")


@dataclass(frozen=True)
class NewImage:
    """A picture of an evaluation: PNG bytes of pinned image `index`."""

    index: int
    png: bytes
    kind: str = "reconstruction"


@dataclass(frozen=True)
class NewScores:
    """An evaluation to be stored. `per_image` lists are in the order of `row_ids`; `model_id` None: the job's model."""

    protocol: Mapping[str, Any]
    split: str
    means: Mapping[str, float | None]
    per_image: Mapping[str, Sequence[float]] = field(default_factory=dict)
    row_ids: Sequence[str] = ()
    images: Sequence[NewImage] = ()
    model_id: str | None = None


@dataclass(frozen=True)
class ScoresRow:
    """The means of an evaluation, with the protocol that they stand under."""

    model_id: str
    protocol_id: str
    protocol: dict[str, Any]
    split: str
    means: dict[str, float | None]
    job_id: str | None
    created: str


@dataclass(frozen=True)
class ImageScoresRow:
    """Each metric of an evaluation for each image, in the order of `row_ids`."""

    model_id: str
    protocol_id: str
    split: str
    row_ids: list[str]
    values: dict[str, list[float]]


@dataclass(frozen=True)
class ImageRow:
    """A stored picture; its bytes are `store.blobs.read(digest)`."""

    model_id: str
    protocol_id: str
    kind: str
    index: int
    digest: str


@dataclass(frozen=True)
class MeasurementRow:
    """One benchmark run; `models` maps model ids to figures (units in their names)."""

    id: int
    device: str
    dtype: str
    settings: dict[str, Any]
    models: dict[str, dict[str, Any]]
    job_id: str | None
    created: str


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """16 hex digits of the protocol's canonical JSON."""
    return digest_of(protocol)[:ID_DIGITS]


def put_protocol(session: Session, protocol: Mapping[str, Any]) -> str:
    """Record a protocol; returns its id."""
    number = protocol_id(protocol)
    execute(
        session,
        "INSERT OR IGNORE INTO protocol (id, content, created) VALUES (?, ?, ?)",
        (number, canonical_bytes(protocol).decode(), now()),
    )
    return number


def put_scores(
    session: Session,
    model_id: str,
    protocol: Mapping[str, Any],
    split: str,
    means: Mapping[str, float | None],
    per_image: Mapping[str, Sequence[float]] | None = None,
    row_ids: Sequence[str] = (),
    *,
    job_id: str | None = None,
) -> str:
    """Store an evaluation inside a write transaction; returns the protocol's id. A mean that does not exist is None.

    Raises StoreError(bad_value): an unknown split, or lists of another length than `row_ids`.
    """
    per_image = per_image or {}
    if split not in SPLITS:
        raise StoreError(f"“{split}” is no split.", given=split, legal=list(SPLITS))
    for metric, values in per_image.items():
        if len(values) != len(row_ids):
            raise StoreError(
                f"{metric} has {len(values)} values for {len(row_ids)} images.", given=len(values), legal=len(row_ids)
            )
    number = put_protocol(session, protocol)
    key = (model_id, number, split)
    for table in ("score", "image_score", "score_set"):
        execute(session, f"DELETE FROM {table} WHERE model=? AND protocol=? AND split=?", key)
    execute(
        session,
        "INSERT INTO score_set (model, protocol, split, row_ids, job_id, created) VALUES (?, ?, ?, ?, ?, ?)",
        (*key, json.dumps([str(row_id) for row_id in row_ids]), job_id, now()),
    )
    for metric, value in means.items():
        absent = value is None or math.isnan(value)
        execute(
            session,
            "INSERT INTO score (model, protocol, split, metric, value) VALUES (?, ?, ?, ?, ?)",
            (*key, metric, None if absent else float(value or 0.0)),
        )
    for metric, values in per_image.items():
        execute(
            session,
            "INSERT INTO image_score (model, protocol, split, metric, packed) VALUES (?, ?, ?, ?, ?)",
            (*key, metric, pack([float("nan") if value is None else float(value) for value in values])),
        )
    return number


def stored_images(store: Store, entry: NewScores) -> list[tuple[str, int, str]]:
    """Write an evaluation's pictures to the blob folder, before they are named: (kind, index, digest)."""
    return [(_image_kind(image.kind), image.index, store.blobs.put_bytes(image.png)) for image in entry.images]


def put_new_scores(
    store: Store,
    session: Session,
    entry: NewScores,
    pictures: Sequence[tuple[str, int, str]],
    *,
    model_id: str | None,
    job_id: str | None,
) -> str:
    """Store an evaluation with its pictures (see `stored_images`) inside a write transaction."""
    target = entry.model_id or model_id
    if target is None:
        raise StoreError("These scores belong to no model.", given=None, legal="scores with a model_id")
    number = put_scores(session, target, entry.protocol, entry.split, entry.means, entry.per_image, entry.row_ids, job_id=job_id)
    for kind, index, digest in pictures:
        _put_image_in(store, session, target, number, kind, index, digest)
    return number


def _image_kind(kind: str) -> str:
    if kind not in IMAGE_KINDS:
        raise StoreError(f"“{kind}” is no kind of picture.", given=kind, legal=list(IMAGE_KINDS))
    return kind


def _put_image_in(store: Store, session: Session, model_id: str, protocol: str, kind: str, index: int, digest: str) -> None:
    key = (model_id, protocol, kind, index)
    role = f"{protocol}/{kind}/{index}"
    execute(session, "DELETE FROM image WHERE model=? AND protocol=? AND kind=? AND position=?", key)
    execute(session, "DELETE FROM artifact_reference WHERE owner_kind='image' AND owner=? AND role=?", (model_id, role))
    need_blob(store, session, digest, "image", "image", model_id, role)
    execute(session, "INSERT INTO image (model, protocol, kind, position, digest) VALUES (?, ?, ?, ?, ?)", (*key, digest))


def put_image(store: Store, model_id: str, protocol_id: str, index: int, png_bytes: bytes, kind: str = "reconstruction") -> str:
    """Store one picture of an evaluated model; returns its blob digest."""
    digest = store.blobs.put_bytes(png_bytes)
    with store.write() as session:
        _put_image_in(store, session, model_id, protocol_id, _image_kind(kind), index, digest)
    return digest


def images(store: Store, model_id: str, *, protocol_id: str | None = None, kind: str | None = None) -> list[ImageRow]:
    """Stored pictures of a model under one protocol (the last one evaluated, unless given), by kind and index."""
    if protocol_id is None:
        found = store.rows(
            "SELECT i.protocol FROM image i LEFT JOIN score_set s ON s.model=i.model AND s.protocol=i.protocol"
            " WHERE i.model=? AND coalesce(s.split, '')<>? ORDER BY s.created DESC LIMIT 1",
            (model_id, RUN),
        )
        if not found:
            return []
        protocol_id = str(found[0][0])
    return [
        ImageRow(model_id, protocol_id, *row)
        for row in store.rows(
            "SELECT kind, position, digest FROM image WHERE model=? AND protocol=? AND kind LIKE ? ORDER BY kind, position",
            (model_id, protocol_id, kind or "%"),
        )
    ]


def score_rows(
    store: Store, model_ids: Sequence[str], split: str = "test", *, protocol_id: str | None = None
) -> dict[str, ScoresRow]:
    """The last evaluation of each model on a split (under one protocol, if given); models without one are left out."""
    ids = list(dict.fromkeys(model_ids))
    chosen: dict[str, tuple[Any, ...]] = {}
    few = len(ids) <= 500
    narrow = f" AND s.model IN ({','.join('?' * len(ids))})" if few else ""
    wanted = set(ids)
    for row in store.rows(
        f"SELECT s.model, s.protocol, s.job_id, s.created FROM score_set s WHERE s.split=?{narrow}"
        + (" AND s.protocol=?" if protocol_id else "")
        + " ORDER BY s.created",
        (split, *(ids if few else ()), *((protocol_id,) if protocol_id else ())),
    ):
        if row[0] in wanted:
            chosen[row[0]] = row
    if not chosen:
        return {}
    means: dict[tuple[str, str], dict[str, float | None]] = {}
    for model, number, metric, value in store.rows(
        f"SELECT s.model, s.protocol, s.metric, s.value FROM score s WHERE s.split=?{narrow}",
        (split, *(ids if few else ())),
    ):
        means.setdefault((model, number), {})[metric] = value
    protocols = {
        number: json.loads(store.rows("SELECT content FROM protocol WHERE id=?", (number,))[0][0])
        for number in {row[1] for row in chosen.values()}
    }
    return {
        model: ScoresRow(model, row[1], protocols[row[1]], split, means.get((model, row[1]), {}), row[2], row[3])
        for model, row in ((model, chosen[model]) for model in ids if model in chosen)
    }


def scores(store: Store, model_id: str, split: str = "test") -> dict[str, float | None]:
    """Means of a model's last evaluation on a split; empty when it was never evaluated.

    `score_rows` has the protocol too.
    """
    row = score_rows(store, [model_id], split).get(model_id)
    return dict(row.means) if row is not None else {}


def image_scores(store: Store, model_id: str, split: str = "test", *, protocol_id: str | None = None) -> ImageScoresRow | None:
    """Per-image figures of a model's last evaluation on a split (under one protocol, if given), else None."""
    row = score_rows(store, [model_id], split, protocol_id=protocol_id).get(model_id)
    if row is None:
        return None
    key = (model_id, row.protocol_id, split)
    ((row_ids,),) = store.rows("SELECT row_ids FROM score_set WHERE model=? AND protocol=? AND split=?", key)
    found = store.rows("SELECT metric, packed FROM image_score WHERE model=? AND protocol=? AND split=?", key)
    values = {metric: unpack(packed).tolist() for metric, packed in found}
    return ImageScoresRow(model_id, row.protocol_id, split, json.loads(row_ids), values)


def runs(store: Store, model_ids: Sequence[str]) -> list[ScoresRow]:
    """Every test run of some models, newest first."""
    ids = list(dict.fromkeys(model_ids))
    found = store.rows(
        "SELECT s.model, s.protocol, p.content, s.job_id, s.created FROM score_set s JOIN protocol p ON p.id=s.protocol"
        f" WHERE s.split=? AND s.model IN ({','.join('?' * len(ids))}) ORDER BY s.created DESC, s.model",
        (RUN, *ids),
    )
    means: dict[tuple[str, str], dict[str, float | None]] = {}
    for model, number, metric, value in store.rows(
        f"SELECT model, protocol, metric, value FROM score WHERE split=? AND model IN ({','.join('?' * len(ids))})", (RUN, *ids)
    ):
        means.setdefault((model, number), {})[metric] = value
    return [
        ScoresRow(model, number, json.loads(content), RUN, means.get((model, number), {}), job_id, created)
        for model, number, content, job_id, created in found
    ]


def put_measurement_in(session: Session, measurement: Mapping[str, Any], *, job_id: str | None = None) -> int:
    """`put_measurement` inside an open write transaction."""
    rows = measurement.get("models")
    if not rows or not all(isinstance(row, Mapping) and row.get("model_id") for row in rows):
        raise StoreError(
            "A measurement names no models.",
            given=None,
            legal='{"device", "dtype", ..., "models": [{"model_id", ...}]}',
        )
    settings = {key: value for key, value in measurement.items() if key not in ("models", "device", "dtype")}
    entry = Measurement(
        device=str(measurement["device"]),
        dtype=str(measurement["dtype"]),
        settings=canonical_bytes(settings).decode(),
        job_id=job_id,
        created=now(),
    )
    session.add(entry)
    session.flush()
    assert entry.id is not None
    for row in rows:
        figures = {key: value for key, value in row.items() if key != "model_id"}
        execute(
            session,
            "INSERT INTO measurement_row (measurement, model, figures) VALUES (?, ?, ?)",
            (entry.id, row["model_id"], canonical_bytes(figures).decode()),
        )
    return entry.id


def put_measurement(store: Store, measurement: Mapping[str, Any], *, job_id: str | None = None) -> int:
    """Store a benchmark run: device, dtype, any settings, and `models`: a list of {model_id, figures...}; its id."""
    with store.write() as session:
        return put_measurement_in(session, measurement, job_id=job_id)


def measurements(store: Store, model_id: str, *, limit: int | None = None) -> list[MeasurementRow]:
    """Benchmark runs that a model took part in, newest first, each with all its models (ratios hold within one run)."""
    model_id = resolve_model(store, model_id, deleted=True)
    found = store.rows(
        "SELECT id, device, dtype, settings, job_id, created FROM measurement WHERE id IN"
        " (SELECT measurement FROM measurement_row WHERE model=?) ORDER BY id DESC LIMIT ?",
        (model_id, -1 if limit is None else limit),
    )
    rows = []
    for number, device, dtype, settings, job_id, created in found:
        models = {
            model: json.loads(figures)
            for model, figures in store.rows("SELECT model, figures FROM measurement_row WHERE measurement=?", (number,))
        }
        rows.append(MeasurementRow(number, device, dtype, json.loads(settings), models, job_id, created))
    return rows
