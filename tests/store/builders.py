"""Models, jobs and old schemas for the store's tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from store import JobRow, ModelRow, NewModel, Store, add_model, jobs
from store.db import DATABASE_NAME, connect
from store.migrations import upgrade

WEIGHTS = b"weights of no consequence"
PROTOCOL = {"images": "abc123", "num_images": 2, "image_size": [128, 128], "dtype": "float32"}


def new_model(store: Store, name: str, parents: tuple[str, ...] = (), **changes: Any) -> NewModel:
    """A model that nothing but its name and parents tell from others; its blob is written."""
    data = changes.pop("data", WEIGHTS)
    pairs = changes.pop("pairs", tuple(("parent", parent) for parent in parents))
    fields: dict[str, Any] = {
        "name": name,
        "kind": "pruned" if parents else "baseline",
        "family": "dcae",
        "config": {"widths": [16, 32]},
        "layout": {"kept": {"encoder.stages.0.blocks.0.mid": [0, 1]}},
        "spec": {"operation": "prune" if parents else "import", "seed": name},
        "parents": pairs,
        "weights_digest": hashlib.sha256(name.encode()).hexdigest(),
        "blob_digest": store.blobs.put_bytes(data),
        "bytes": len(data),
        "facts": {"parameters": 1000.0, "sparsity": 0.0},
    }
    return NewModel(**{**fields, **changes})


def model(store: Store, name: str, *parents: ModelRow, **changes: Any) -> ModelRow:
    return add_model(store, new_model(store, name, tuple(parent.id for parent in parents), **changes))


def running_job(store: Store, operation: str = "retrain", **options: Any) -> JobRow:
    """A job that was submitted, claimed and started as process 4242."""
    jobs.submit(store, operation, {"seed": 1}, device="cpu", **options)
    claimed = jobs.claim(store, "cpu", "test")
    assert claimed is not None
    return jobs.set_running(store, claimed, 4242, 1000.0)


def build_schema(root: Path, revision: str) -> Path:
    """A database of an older revision in folder `root`: what a store written by an older version looks like."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / DATABASE_NAME
    first = connect(path, mode="rwc")
    first.execute("PRAGMA journal_mode=WAL")
    first.close()
    engine = create_engine("sqlite://", creator=lambda: connect(path, mode="rw"), poolclass=NullPool)
    with engine.begin() as connection:
        upgrade(connection, revision)
    engine.dispose()
    return path


def fill_first_schema(path: Path) -> str:
    """A baseline as revision 0001 stored it; returns its id. Frozen: never follow newer schemas here."""
    canonical = b'{"dataset":null,"family":"dcae","kind":"baseline","parents":[],"spec":{},"spec_version":1,"weights":"w"}'
    digest = hashlib.sha256(canonical).hexdigest()
    model_id = f"m_{digest[:16]}"
    content = hashlib.sha256(b"old").hexdigest()
    target = path.parent / "blobs" / content[:2] / content[2:]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"old")
    connection = connect(path, mode="rw")
    connection.execute("INSERT INTO blob VALUES (?, 3, 'weights', '2026-01-01T00:00:00.000000+00:00')", (content,))
    connection.execute(
        "INSERT INTO model (id, digest, name, kind, family, weights_digest, blob_digest, bytes, note, facts, created)"
        " VALUES (?, ?, 'old baseline', 'baseline', 'dcae', 'w', ?, 3, 'kept', '{}',"
        " '2026-01-01T00:00:00.000000+00:00')",
        (model_id, digest, content),
    )
    connection.execute(
        "INSERT INTO model_text (model, canonical, spec, config, layout) VALUES (?, ?, '{}', '{}', '{}')",
        (model_id, canonical),
    )
    connection.execute("INSERT INTO artifact_reference VALUES (?, 'model', ?, 'weights')", (content, model_id))
    connection.close()
    return model_id
