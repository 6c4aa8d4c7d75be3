"""Cleaning up: what only deleted models needed, and what killed processes left behind. Until it runs, a deletion can be undone.

Nothing that a living model, a job or a figure needs is touched: `artifact_reference` says who needs which file.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session

from store.db import DATABASE_NAME, Store, execute
from store.job_rows import ENDED
from store.references import GRACE_S, drop_references, sweep

SCORED = ("score", "image_score", "score_set", "image")
OLD_S = 24 * 3600.0
"""A half-written file of this age has no writer any more."""
SCRATCH_NAME = "scratch"
"""The folder of a job that holds what it needs only while it runs."""


@dataclass(frozen=True)
class Orphan:
    """A file or folder that nothing in the store names."""

    path: Path
    bytes: int
    why: str


@dataclass(frozen=True)
class CleanReport:
    """What a clean-up took: models whose deletion is final now, orphans, and the bytes of the store before and after."""

    models: tuple[str, ...]
    orphans: tuple[Orphan, ...]
    bytes_before: int
    bytes_after: int

    @property
    def bytes_freed(self) -> int:
        return self.bytes_before - self.bytes_after


def store_bytes(store: Store) -> int:
    """Bytes of the database with its log, of all blobs, and of the jobs' folders."""
    files = [path for folder in ("blobs", "jobs") for path in (store.root / folder).rglob("*")]
    return sum(_size(path) for path in (*files, *store.root.glob(f"{DATABASE_NAME}*")))


def orphans(store: Store, *, older_than_s: float = GRACE_S) -> list[Orphan]:
    """Files that nothing names. Young ones are spared: a running job writes its files before the transaction that names them."""
    now, found = time.time(), []
    needed = {row[0] for row in store.rows("SELECT DISTINCT digest FROM artifact_reference")}
    for digest in list(store.blobs.digests()):
        path = store.blobs.path(digest)
        if digest not in needed and _age(path, now) > older_than_s:
            found.append(Orphan(path, _size(path), "A file that nothing needs"))
    for path in sorted((store.blobs.folder / "partial").glob("*")):
        if _age(path, now) > max(older_than_s, OLD_S):
            found.append(Orphan(path, _size(path), "A half-written file"))
    states = dict(store.rows("SELECT id, state FROM job"))
    for folder in sorted((store.root / "jobs").glob("j_*")):
        left = folder if folder.name not in states else folder / SCRATCH_NAME
        over = states.get(folder.name) in (None, *ENDED)
        if over and left.exists() and _age(left, now) > older_than_s:
            size = sum(_size(path) for path in left.rglob("*"))
            found.append(Orphan(left, size, "A folder of no job" if left == folder else "What an ended job left behind"))
    return found


def cleanable(store: Store, *, with_orphans: bool = True) -> tuple[int, int]:
    """(number of deleted models, bytes that their files take): what the next clean-up frees; orphans are looked for on the disk."""
    gone = "SELECT id FROM model WHERE deleted IS NOT NULL AND blob_digest IS NOT NULL"
    ((count,),) = store.rows(f"SELECT count(*) FROM ({gone})")
    ((total,),) = store.rows(
        "SELECT coalesce(sum(b.bytes), 0) FROM blob b WHERE EXISTS (SELECT 1 FROM artifact_reference r WHERE r.digest=b.digest)"
        " AND NOT EXISTS (SELECT 1 FROM artifact_reference r WHERE r.digest=b.digest AND NOT (r.owner_kind IN ('model', 'image')"
        f" AND r.owner IN ({gone})))"
    )
    return int(count), int(total) + sum(left.bytes for left in (orphans(store) if with_orphans else ()))


def clean(store: Store, *, older_than_s: float = GRACE_S) -> CleanReport:
    """Make deletions final and free what nothing needs; tombstones stay. Orphans younger than `older_than_s` are spared."""
    before, left = store_bytes(store), orphans(store, older_than_s=older_than_s)
    with store.write() as session:
        gone = [
            str(row[0])
            for row in execute(session, "SELECT id FROM model WHERE deleted IS NOT NULL AND blob_digest IS NOT NULL ORDER BY id")
        ]
        for model_id in gone:
            _bury(session, model_id)
    sweep(store, strays_older_than_s=older_than_s)
    for orphan in left:
        if orphan.path.is_dir():
            shutil.rmtree(orphan.path, ignore_errors=True)
    return CleanReport(tuple(gone), tuple(left), before, store_bytes(store))


def _bury(session: Session, model_id: str) -> None:
    for table in SCORED:
        execute(session, f"DELETE FROM {table} WHERE model=?", (model_id,))
    execute(session, "DELETE FROM alias WHERE model=?", (model_id,))
    execute(session, "DELETE FROM tag WHERE model=?", (model_id,))
    drop_references(session, "model", model_id)
    drop_references(session, "image", model_id)
    execute(session, "UPDATE model SET blob_digest=NULL WHERE id=?", (model_id,))


def _size(path: Path) -> int:
    """Bytes of a file; 0 for a folder, or a file that has gone meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
