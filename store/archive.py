"""A branch as one file: a zip with a small store in it (rows and weights), and its way into another store.

- In it: a model, all that it goes back to, on request what was made from it; their figures, pictures, tags, notes, and the jobs
  that made and judged them, with curves and logs. Ids are the same wherever it is read.
- The rows travel as a database of this store's own schema, so an archive of an older version is brought up to date on reading by
  the same migrations, and one of a newer version is refused.
- An archive is refused whole or taken whole: every file is hashed and every id derived again before the first row is written, and
  the rows are written in one transaction. Rows that are there stay as they are, so that twice changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from store.ancestry import ancestors, descendants
from store.blobs import CHUNK_BYTES, digest_of_file, disk_error
from store.copying import link_blob
from store.db import DATABASE_NAME, Store, connect, open_store, translate
from store.errors import StoreError
from store.migrations import HEAD
from store.model_rows import get_model, list_models
from store.verification import verify

FORMAT = 1
MANIFEST_NAME = "manifest.json"
LOCK_NAME = "import.lock"
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/([0-9a-f]{62})")
_LOG = re.compile(r"jobs/(j_[0-9a-f]+)/log\.jsonl")
_UNREADABLE = (
    zipfile.BadZipFile,  # a directory, header or checksum that is off
    EOFError,  # an entry that ends early
    RuntimeError,  # what zipfile will not read: a version of the format or a flag that it does not know, a password
    zlib.error,  # a deflate stream that cannot be
)
"""What `zipfile` raises for damaged bytes; they have no base in common. A test meets each of them; whatever else is raised is our own
mistake."""
_WHOLE = "a whole archive as `export-branch` wrote it"


@dataclass(frozen=True)
class Exported:
    """A written archive."""

    path: Path
    models: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Imported:
    """What an archive brought: `models` are new here (or were only tombstones), `known` were there already."""

    models: tuple[str, ...]
    known: tuple[str, ...]
    jobs: int


# Writing ------------------------------------------------------------------------------------------------------------------

_COPIES = (
    "INSERT INTO dataset SELECT * FROM here.dataset WHERE digest IN (SELECT dataset_digest FROM here.model WHERE id IN wanted)",
    "INSERT INTO blob SELECT * FROM here.blob WHERE digest IN (SELECT digest FROM kept)",
    "INSERT INTO model SELECT * FROM here.model WHERE id IN wanted",
    # What is deleted here travels as a tombstone: ids of its descendants stay provable, and nothing deleted comes back by itself.
    "UPDATE model SET blob_digest=NULL WHERE deleted IS NOT NULL",
    "INSERT INTO model_text SELECT * FROM here.model_text WHERE model IN wanted",
    "INSERT INTO edge SELECT * FROM here.edge WHERE child IN wanted",
    "INSERT INTO tag SELECT * FROM here.tag WHERE model IN living",
    "INSERT INTO alias SELECT * FROM here.alias WHERE model IN living",
    "INSERT INTO job SELECT * FROM here.job WHERE id IN done",
    "UPDATE job SET parent_job_id=NULL WHERE parent_job_id NOT IN done",
    "UPDATE job SET parent_model_id=NULL WHERE parent_model_id NOT IN wanted",
    "INSERT INTO job_dependency SELECT * FROM here.job_dependency WHERE job IN done AND needs IN done",
    "INSERT INTO metric_key_set SELECT * FROM here.metric_key_set",
    "INSERT INTO metric SELECT * FROM here.metric WHERE job IN done",
    "INSERT INTO latest SELECT * FROM here.latest WHERE job IN done",
    "INSERT INTO protocol SELECT * FROM here.protocol WHERE id IN (SELECT protocol FROM here.score_set WHERE model IN living)",
    "INSERT INTO score_set SELECT * FROM here.score_set WHERE model IN living",
    "INSERT INTO score SELECT * FROM here.score WHERE model IN living",
    "INSERT INTO image_score SELECT * FROM here.image_score WHERE model IN living",
    "INSERT INTO image SELECT * FROM here.image WHERE model IN living AND protocol IN (SELECT id FROM protocol)",
    "INSERT INTO measurement SELECT * FROM here.measurement WHERE id IN"
    " (SELECT measurement FROM here.measurement_row WHERE model IN wanted)",
    "INSERT INTO measurement_row SELECT * FROM here.measurement_row WHERE model IN wanted",
    "INSERT INTO artifact_reference SELECT * FROM here.artifact_reference WHERE digest IN (SELECT digest FROM kept)"
    " AND ((owner_kind IN ('model', 'image') AND owner IN living) OR (owner_kind='job' AND owner IN done))",
)


def export_branch(store: Store, ref: str, target: Path | str, *, with_descendants: bool = False) -> Exported:
    """Writes a model with all that it goes back to (and all that was made from it) into `target`, a file or a folder.

    Raises StoreError: exists (never overwrites), missing_blob, broken_blob, disk_full, read_only.
    """
    row = get_model(store, ref)
    below = descendants(store, row.id) if with_descendants else []
    # A descendant may have a teacher or a second parent elsewhere, which its id needs.
    ids = list(dict.fromkeys([row.id, *(m.id for m in below), *(a.id for m in (row, *below) for a in ancestors(store, m.id))]))
    path = Path(target).expanduser().absolute()
    path = path / f"{row.id}.offshoot.zip" if path.is_dir() else path
    if path.exists():
        raise StoreError(f"{path} is there already.", code="exists", given=str(path), next="Choose another name.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with tempfile.TemporaryDirectory(dir=store.root, prefix="export-") as scratch:
            _fill(store, Path(scratch), ids)
            blobs = _blobs_of(Path(scratch))
            with zipfile.ZipFile(partial, "x", allowZip64=True) as archive:
                for digest in blobs:
                    archive.write(store.blobs.whole(digest), f"blobs/{digest[:2]}/{digest[2:]}")
                logs = []
                for job in _jobs_of(Path(scratch)):
                    log = store.root / "jobs" / job / "log.jsonl"
                    if log.is_file():
                        logs.append(job)
                        archive.write(log, f"jobs/{job}/log.jsonl", zipfile.ZIP_DEFLATED)
                archive.write(Path(scratch) / DATABASE_NAME, DATABASE_NAME, zipfile.ZIP_DEFLATED)
                manifest = {
                    "format": FORMAT, "schema": HEAD, "model": row.id, "models": ids, "logs": logs,
                    "database_sha256": digest_of_file(Path(scratch) / DATABASE_NAME),
                }  # fmt: skip
                archive.writestr(MANIFEST_NAME, json.dumps(manifest, sort_keys=True, indent=1))
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.link(partial, path)  # unlike a rename, this fails where somebody has taken the name meanwhile
    except FileExistsError as error:
        raise StoreError(f"{path} is there already.", code="exists", given=str(path), next="Choose another name.") from error
    except FileNotFoundError as error:
        raise StoreError(
            f"There is no folder {path.parent}.", code="no_folder", given=str(path), legal="a file in a folder that exists"
        ) from error
    except OSError as error:
        raise disk_error(error, path) or error from error
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, tuple(ids), path.stat().st_size)


def _fill(store: Store, folder: Path, ids: list[str]) -> None:
    """The branch's rows in a fresh database of the same schema, folded into one file."""
    open_store(folder).close()
    with closing(connect(folder / DATABASE_NAME, mode="rw")) as connection:
        connection.execute("ATTACH ? AS here", (f"file:{quote(str(store.path))}?mode=ro",))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA defer_foreign_keys=ON")  # a job's dependencies and models refer to one another
        for name, query in (
            ("wanted", "SELECT value FROM json_each(?1)"),
            ("living", "SELECT id FROM here.model WHERE deleted IS NULL AND id IN (SELECT value FROM json_each(?1))"),
            (
                "done",
                "SELECT id FROM here.job WHERE state='done' AND coalesce(model_id, parent_model_id) IN (SELECT value FROM"
                " json_each(?1))",
            ),
        ):
            connection.execute(f"CREATE TEMP TABLE {name} (id TEXT PRIMARY KEY)")
            connection.execute(f"INSERT OR IGNORE INTO {name} {query}", (json.dumps(ids),))
        connection.execute(
            "CREATE TEMP TABLE kept AS SELECT DISTINCT digest FROM here.artifact_reference WHERE"
            " (owner_kind IN ('model', 'image') AND owner IN living) OR (owner_kind='job' AND owner IN done)"
        )
        for statement in _COPIES:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("DETACH here")
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("VACUUM")


def _blobs_of(folder: Path) -> list[str]:
    with closing(connect(folder / DATABASE_NAME, mode="ro")) as connection:
        return [str(row[0]) for row in connection.execute("SELECT digest FROM blob ORDER BY digest")]


def _jobs_of(folder: Path) -> list[str]:
    with closing(connect(folder / DATABASE_NAME, mode="ro")) as connection:
        return [str(row[0]) for row in connection.execute("SELECT id FROM job ORDER BY id")]


# Reading ------------------------------------------------------------------------------------------------------------------

_MERGES = (
    "INSERT OR IGNORE INTO dataset SELECT * FROM new.dataset",
    "INSERT OR IGNORE INTO blob SELECT * FROM new.blob",
    # A tombstone here that lives there comes back to life, with the weights that the archive brings.
    "UPDATE model SET deleted=NULL, name=(SELECT name FROM fresh WHERE fresh.id=model.id), blob_digest=(SELECT n.blob_digest FROM"
    " new.model n WHERE n.id=model.id) WHERE deleted IS NOT NULL AND id IN (SELECT id FROM fresh)",
    "INSERT OR IGNORE INTO model SELECT id, digest, coalesce((SELECT f.name FROM fresh f WHERE f.id=n.id), name), kind, family,"
    " weights_digest, blob_digest, bytes, dataset_digest, job_id, note, facts, created, deleted FROM new.model n"
    " ORDER BY n.created, n.rowid",
    "INSERT OR IGNORE INTO model_text SELECT * FROM new.model_text",
    "INSERT OR IGNORE INTO edge SELECT * FROM new.edge",
    "INSERT OR IGNORE INTO tag SELECT * FROM new.tag WHERE model IN (SELECT id FROM fresh)",
    "INSERT OR IGNORE INTO alias SELECT * FROM new.alias WHERE model IN (SELECT id FROM fresh)"
    " AND name NOT IN (SELECT name FROM model WHERE deleted IS NULL)",
    "INSERT OR IGNORE INTO job SELECT * FROM new.job",
    "INSERT OR IGNORE INTO job_dependency SELECT * FROM new.job_dependency",
    "INSERT OR IGNORE INTO metric_key_set (names) SELECT names FROM new.metric_key_set",
    *(
        f"INSERT OR IGNORE INTO {table} (job, step, attempt, key_set, time, packed) SELECT m.job, m.step, m.attempt, k.id, m.time,"
        f" m.packed FROM new.{table} m JOIN new.metric_key_set o ON o.id=m.key_set JOIN main.metric_key_set k ON k.names=o.names"
        # A job whose curve is here has all of it: points of two attempts are never mixed.
        " WHERE m.job IN (SELECT id FROM fresh_job)"
        for table in ("metric", "latest")
    ),
    "INSERT OR IGNORE INTO protocol SELECT * FROM new.protocol",
    *(
        f"INSERT OR IGNORE INTO {table} SELECT * FROM new.{table} n WHERE (n.model, n.protocol) IN (SELECT model, protocol FROM"
        " fresh_score)"
        for table in ("score_set", "score", "image_score", "image")
    ),
    "INSERT INTO measurement (device, dtype, settings, job_id, created) SELECT device, dtype, settings, job_id, created FROM"
    " new.measurement n WHERE NOT EXISTS (SELECT 1 FROM main.measurement m WHERE m.job_id IS n.job_id AND m.created=n.created)"
    " ORDER BY n.id",
    "INSERT OR IGNORE INTO measurement_row (measurement, model, figures) SELECT m.id, r.model, r.figures FROM new.measurement_row r"
    " JOIN new.measurement n ON n.id=r.measurement JOIN main.measurement m ON m.job_id IS n.job_id AND m.created=n.created",
    "INSERT OR IGNORE INTO artifact_reference SELECT * FROM new.artifact_reference r WHERE (owner_kind='model' AND owner IN"
    " (SELECT id FROM fresh)) OR (owner_kind='image' AND EXISTS (SELECT 1 FROM main.image i WHERE i.model=r.owner AND"
    " i.digest=r.digest)) OR (owner_kind='job' AND owner IN (SELECT id FROM fresh_job))",
)


def import_archive(store: Store, source: Path | str) -> Imported:
    """Takes an archive in, whole or not at all. Names that are taken get a number; aliases that are taken stay where they are.

    Raises StoreError: no_file, bad_archive (cut short, altered, not one), newer_archive, newer_schema, import_busy, disk_full.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise StoreError(f"There is no file {path}.", code="no_file", given=str(path), legal=_WHOLE)
    with _only_one(store), tempfile.TemporaryDirectory(dir=store.root, prefix="import-") as scratch:
        folder = Path(scratch)
        try:
            _unpack(path, folder)
        except _UNREADABLE as error:
            raise _bad(path, f"it is cut short, altered or no archive at all ({error})") from error
        except OSError as error:
            if error.errno == errno.EINVAL:  # an entry that is said to begin before the file does
                raise _bad(path, "it is altered") from error
            raise disk_error(error, store.root) or error from error
        try:
            arriving = open_store(folder, create=False)
        except StoreError as error:
            raise error if error.code == "newer_schema" else _bad(path, error.message) from error
        with closing(arriving):
            _check(path, arriving)
            for digest in arriving.blobs.digests():
                link_blob(arriving, store, digest)
        found = _merge(store, folder / DATABASE_NAME)
        for log in (folder / "jobs").glob("*/log.jsonl"):
            place = store.job_folder(log.parent.name) / log.name
            if not place.exists():
                shutil.move(log, place)
    return found


def _bad(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path} cannot be taken in: {why}.",
        code="bad_archive",
        given=str(path),
        legal=_WHOLE,
        next="Copy or export it again. Nothing was changed.",
    )


def _unpack(path: Path, folder: Path) -> None:
    """Every file to its place, each checked by zip's checksum, the database and the blobs by their sha256 too."""
    with zipfile.ZipFile(path) as archive:
        _check_entries(path, archive)
        manifest = _manifest(path, archive)
        for name in archive.namelist():
            if name == MANIFEST_NAME:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as given, open(target, "wb") as out:
                shutil.copyfileobj(given, out, CHUNK_BYTES)
                out.flush()
                os.fsync(out.fileno())
            blob = _BLOB.fullmatch(name)
            if blob is not None and digest_of_file(target) != blob[1] + blob[2]:
                raise _bad(path, f"{name} was changed")
    if digest_of_file(folder / DATABASE_NAME) != manifest.get("database_sha256"):
        raise _bad(path, "its database was changed")


def _check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises StoreError for an entry that no archive of ours has, or lacks, or that is not packed as ours are."""
    names = archive.namelist()
    for wanted in (MANIFEST_NAME, DATABASE_NAME):
        if wanted not in names:
            raise _bad(path, f"it has no {wanted}: it is altered or no archive at all")
    for entry in archive.infolist():
        name = entry.filename
        if name not in (MANIFEST_NAME, DATABASE_NAME) and not _BLOB.fullmatch(name) and not _LOG.fullmatch(name):
            raise _bad(path, f"it holds {name!r}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _bad(path, f"{name} is packed in another way than ours")


def _manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Raises StoreError for one that cannot be read, and for an archive of another version."""
    try:
        manifest = json.loads(archive.read(MANIFEST_NAME))
    except ValueError as error:  # no JSON, or no UTF-8
        raise _bad(path, f"its manifest cannot be read ({error})") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise _bad(path, "its manifest is altered")
    if manifest["format"] != FORMAT:
        raise StoreError(
            f"{path} was written by another version of Offshoot.",
            code="newer_archive",
            given=manifest["format"],
            legal=FORMAT,
            next="Update Offshoot. Nothing was changed.",
        )
    return manifest


def _check(path: Path, arriving: Store) -> None:
    """Every id derived again, every file there, every chain down to its baseline."""
    if not list_models(arriving, limit=1):
        raise _bad(path, "it holds no model")
    problems = verify(arriving)
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise _bad(path, f"{problems[0].model_id or 'a file'}: {problems[0].message.rstrip('.')}{more}")


def _merge(store: Store, database: Path) -> Imported:
    """All rows in one transaction."""
    with closing(connect(store.path, mode="rw")) as connection, _told(store):
        connection.execute("ATTACH ? AS new", (f"file:{quote(str(database))}?mode=ro",))
        connection.execute("BEGIN IMMEDIATE")  # whatever fails before the commit: closing rolls back
        connection.execute("PRAGMA defer_foreign_keys=ON")
        fresh, known = _fresh(connection)
        connection.execute("CREATE TEMP TABLE fresh (id TEXT PRIMARY KEY, name TEXT)")
        names = _Taken(connection)
        connection.executemany("INSERT INTO fresh VALUES (?, ?)", [(ref, names.free(name)) for ref, name in fresh])
        connection.execute("CREATE TEMP TABLE fresh_job AS SELECT id FROM new.job WHERE id NOT IN (SELECT id FROM main.job)")
        connection.execute(
            "CREATE TEMP TABLE fresh_score AS SELECT model, protocol FROM new.score_set s WHERE NOT EXISTS (SELECT 1 FROM"
            " main.score_set m WHERE m.model=s.model AND m.protocol=s.protocol)"
        )
        ((num_jobs,),) = connection.execute("SELECT count(*) FROM fresh_job").fetchall()
        for statement in _MERGES:
            connection.execute(statement)
        connection.execute("COMMIT")
    return Imported(tuple(ref for ref, _ in fresh), tuple(known), int(num_jobs))


def _fresh(connection: sqlite3.Connection) -> tuple[list[tuple[str, str]], list[str]]:
    """(id, name) of the models that the archive brings to life, and the ids of those that live here."""
    rows = connection.execute(
        "SELECT n.id, n.name, m.id IS NOT NULL AND m.deleted IS NULL FROM new.model n LEFT JOIN main.model m ON m.id=n.id"
        " WHERE n.deleted IS NULL ORDER BY n.created, n.rowid"
    ).fetchall()
    return [(ref, name) for ref, name, here in rows if not here], [ref for ref, _, here in rows if here]


class _Taken:
    """Names in use, so that each arriving model gets a free one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        living = "SELECT name FROM main.model WHERE deleted IS NULL"
        self.names = {row[0] for row in connection.execute(f"{living} UNION SELECT name FROM main.alias")}

    def free(self, name: str) -> str:
        number, free = 1, name
        while free in self.names:
            number += 1
            free = f"{name}-{number}"
        self.names.add(free)
        return free


@contextmanager
def _told(store: Store) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, store.path) or error from error


@contextmanager
def _only_one(store: Store) -> Iterator[None]:
    """Holds the store's import lock."""
    with (store.root / LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                "Another archive is being imported into this store.",
                code="import_busy",
                given=str(store.root),
                next="Wait until it is done, then try again. Nothing was changed.",
            ) from None
        yield
