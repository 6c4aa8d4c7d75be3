"""The store: models, their ancestry, jobs, metrics, figures and files, in one folder; no torch.

`open_store(folder)` gives a `Store`; everything else is a function that takes it first: `jobs.submit(store, ...)`,
`metrics.series(store, ...)`, `scores.scores(store, ...)`, `checkpoints.record(store, ...)`, and the models' own
functions, which stand here. What comes back are frozen dataclasses, detached from the database, with `to_json()` where
a page needs it.
"""

from store import checkpoints, identity, jobs, lineage, metrics, scores
from store.ancestry import (
    EdgeRow,
    NewModel,
    add_model,
    ancestors,
    baseline_of,
    children,
    descendants,
    edges,
    parents,
)
from store.annotations import add_tag, aliases, remove_alias, remove_tag, rename_model, set_alias, set_note
from store.blobs import BlobStore
from store.checkpoints import CheckpointRow
from store.cleaning import CleanReport, Orphan, clean, cleanable, orphans, store_bytes
from store.copying import copy_model
from store.db import Store, open_store
from store.deletion import DeletePreview, delete_model, deleted_models, preview_delete, restore
from store.errors import StoreError
from store.identity import Identity, canonical_bytes, digest_of, model_identity
from store.job_control import legal_controls
from store.job_rows import JobRow
from store.metrics import MetricWriter
from store.mirrored import MirroredRow, mirrored, mirrored_jobs, set_mirrored
from store.model_rows import ModelRow, get_model, get_models, list_models, resolve_model
from store.references import sweep
from store.scores import ImageRow, ImageScoresRow, MeasurementRow, NewImage, NewScores, ScoresRow
from store.verification import Problem, verify
from store.workers import WorkerLock, WorkerRow

__all__ = [
    "BlobStore",
    "CheckpointRow",
    "CleanReport",
    "DeletePreview",
    "EdgeRow",
    "Identity",
    "ImageRow",
    "ImageScoresRow",
    "JobRow",
    "MeasurementRow",
    "MetricWriter",
    "MirroredRow",
    "ModelRow",
    "NewImage",
    "NewModel",
    "NewScores",
    "Orphan",
    "Problem",
    "ScoresRow",
    "Store",
    "StoreError",
    "WorkerLock",
    "WorkerRow",
    "add_model",
    "add_tag",
    "aliases",
    "ancestors",
    "baseline_of",
    "canonical_bytes",
    "checkpoints",
    "children",
    "clean",
    "cleanable",
    "copy_model",
    "delete_model",
    "deleted_models",
    "descendants",
    "digest_of",
    "edges",
    "get_model",
    "get_models",
    "identity",
    "jobs",
    "legal_controls",
    "lineage",
    "list_models",
    "metrics",
    "mirrored",
    "mirrored_jobs",
    "model_identity",
    "open_store",
    "orphans",
    "parents",
    "preview_delete",
    "remove_alias",
    "remove_tag",
    "rename_model",
    "resolve_model",
    "restore",
    "scores",
    "set_alias",
    "set_mirrored",
    "set_note",
    "store_bytes",
    "sweep",
    "verify",
]
