"""Opening a store: one SQLite file, its engines, its folders.

- WAL, foreign keys, `mmap_size=0`, `synchronous=NORMAL` (a killed process loses nothing; only a power cut may lose the
  last commits). Every write transaction begins with BEGIN IMMEDIATE: a read that turns into a write would fail at once
  with "locked", whatever the timeout.
- Pages read through a read-only engine, in snapshots that see everything committed before they began.
- The schema is brought up to date on opening, under a file lock, so that two processes may open a cold store at once.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from store.blobs import BlobStore, disk_error
from store.errors import StoreError
from store.migrations import HEAD, REVISIONS, upgrade

DATABASE_NAME = "offshoot.sqlite"
BUSY_TIMEOUT_S = 30.0
_SQLITE_MAGIC = b"SQLite format 3\x00"


def translate(error: BaseException, path: Path) -> StoreError | None:
    """What SQLite says about the machine (full, read-only, damaged, busy), as a StoreError; None for anything else."""
    if isinstance(error, DBAPIError):
        error = error.orig or error
    text = str(error).lower()
    if "disk is full" in text:
        return disk_error(OSError(28, "No space left on device"), path)
    if "readonly database" in text or "read-only" in text:
        return disk_error(OSError(30, "Read-only file system"), path)
    if "not a database" in text or "malformed" in text:
        return StoreError(
            f"{path} is not a readable database.",
            code="not_a_database",
            given=str(path),
            legal="a folder with an Offshoot store, or an empty folder",
            next="Choose another folder with OFFSHOOT_HOME or --store, or restore the file from a backup.",
        )
    if "database is locked" in text or "database table is locked" in text:
        return StoreError(
            f"Another process has kept {path} locked for {BUSY_TIMEOUT_S:.0f} s.",
            code="busy",
            given=str(path),
            next="Try again; if it stays so, look for a stopped or hanging process that has the store open.",
        )
    if "unable to open database file" in text:
        return StoreError(
            f"{path} cannot be opened.",
            code="no_store",
            given=str(path),
            legal="a folder that this user may read and write",
            next="Check the folder's permissions, or choose another folder with OFFSHOOT_HOME or --store.",
        )
    return None


def connect(path: Path, *, mode: str) -> sqlite3.Connection:
    """A sqlite3 connection in autocommit with the store's pragmas; `mode` is ro, rw, rwc or immutable."""
    options = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{options}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA mmap_size=0")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _engine(creator: Callable[[], sqlite3.Connection], begin: str) -> Engine:
    engine = create_engine("sqlite://", creator=creator, poolclass=QueuePool, pool_size=8, max_overflow=64)

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


class Store:
    """An open store. Safe to share between threads; a child process opens its own."""

    def __init__(self, root: Path, *, read_only: bool, read_mode: str) -> None:
        self.root = root
        self.path = root / DATABASE_NAME
        self.read_only = read_only
        self.blobs = BlobStore(root / "blobs")
        self._read_engine = _engine(lambda: connect(self.path, mode=read_mode), "BEGIN")
        self._write_engine = None if read_only else _engine(lambda: connect(self.path, mode="rw"), "BEGIN IMMEDIATE")
        # SQLite's busy handler sleeps in growing steps and is not fair; threads of one process queue here instead.
        self._write_lock = threading.Lock()
        self._writer: int | None = None
        self._read_mode = read_mode
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A write transaction (BEGIN IMMEDIATE): committed on leaving, rolled back on any error.

        Raises StoreError(read_only, disk_full, busy, not_a_database).
        """
        if self._write_engine is None:
            raise StoreError(
                f"{self.root} was opened for reading only.",
                code="read_only",
                given=str(self.root),
                legal="a store opened for writing",
                next="Open the store with write access, or choose another folder with OFFSHOOT_HOME or --store.",
            )
        assert self._writer != threading.get_ident(), "a write transaction inside a write transaction would wait for itself"
        with self._write_lock, self._translated():
            self._writer = threading.get_ident()
            try:
                with Session(self._write_engine, expire_on_commit=False) as session:
                    session.connection()
                    yield session
                    session.commit()
            finally:
                self._writer = None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session on the read-only engine: one snapshot, taken at its first query."""
        with self._translated(), Session(self._read_engine, expire_on_commit=False) as session:
            yield session

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query, as plain tuples, through the read-only engine and past the ORM (20 us, not 500)."""
        with self._translated():
            pooled = self._read_engine.raw_connection()
            try:
                return pooled.cursor().execute(sql, parameters).fetchall()  # type: ignore[func-returns-value, no-any-return]
            finally:
                pooled.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            known = translate(error, self.path)
            if known is None:
                raise
            raise known from error

    def version(self) -> int:
        """Another number whenever anything was committed since the last call, by this process or any other: what caches go by."""
        with self._watch_lock, self._translated():
            if self._watch is None:
                # It never writes, so that every change is one by another connection.
                self._watch = connect(self.path, mode=self._read_mode)
            ((number,),) = self._watch.execute("PRAGMA data_version").fetchall()
            return int(number)

    def job_folder(self, job_id: str) -> Path:
        """The folder of a job's log, checkpoints and plans; made when missing."""
        folder = self.root / "jobs" / job_id
        if not self.read_only:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                known = disk_error(error, folder)
                if known is None:
                    raise
                raise known from error
        return folder

    def close(self) -> None:
        """Close all connections. The last process to close folds the write-ahead log into the file."""
        if self._write_engine is not None:
            self._write_engine.dispose()
        self._read_engine.dispose()
        with self._watch_lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None


def execute(session: Session, sql: str, parameters: Sequence[Any] = ()) -> Any:
    """Plain SQL inside a session's transaction."""
    return session.connection().exec_driver_sql(sql, tuple(parameters))


def open_store(root: Path | str, *, read_only: bool = False, create: bool = True) -> Store:
    """Open the store in folder `root`, making or upgrading it unless told otherwise.

    Raises StoreError: no_store, read_only, not_a_database, not_a_store, newer_schema, old_schema, disk_full, busy.
    """
    root = Path(root).expanduser().absolute()
    path = root / DATABASE_NAME
    if not path.exists():
        if read_only or not create:
            raise StoreError(
                f"There is no store in {root}.",
                code="no_store",
                given=str(root),
                legal=f"a folder with {DATABASE_NAME}",
                next="Start the workbench once, or run `python -m core setup`, to make one.",
            )
        _make_folder(root)
    elif not read_only and not (os.access(root, os.W_OK) and os.access(path, os.W_OK)):
        known = disk_error(OSError(13, "Permission denied"), root)
        assert known is not None
        raise known
    read_mode = "ro"
    try:
        revision, tables = _inspect(path, "ro") if path.exists() else (None, 0)
    except sqlite3.OperationalError as error:
        # A write-ahead log cannot be opened in a folder that takes no new files; nobody can be writing there either.
        if not read_only or "unable to open" not in str(error):
            raise translate(error, path) or error from error
        read_mode = "immutable"
        revision, tables = _inspect(path, read_mode)
    except sqlite3.DatabaseError as error:
        raise translate(error, path) or error from error
    if revision != HEAD:
        if read_only:
            _check_revision(path, revision, tables)
            raise StoreError(
                f"{path} has an older format.",
                code="old_schema",
                given=revision,
                legal=HEAD,
                next="Open it once with write access; it is brought up to date by itself.",
            )
        _migrate(root, path)
    return Store(root, read_only=read_only, read_mode=read_mode)


def _make_folder(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{root} is a file, not a folder.", code="no_store", given=str(root), legal="a folder") from error
    except OSError as error:
        raise disk_error(error, root) or error from error
    if not os.access(root, os.W_OK):
        raise disk_error(OSError(13, "Permission denied"), root) or AssertionError


def _inspect(path: Path, mode: str) -> tuple[str | None, int]:
    """(schema revision or None, number of tables) of a database file."""
    with open(path, "rb") as given:
        head = given.read(16)
    if head and head != _SQLITE_MAGIC:
        raise sqlite3.DatabaseError("file is not a database")
    connection = connect(path, mode=mode)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        if "alembic_version" not in tables:
            return None, len(tables)
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return (row[0] if row else None), len(tables)
    finally:
        connection.close()


def _check_revision(path: Path, revision: str | None, tables: int) -> None:
    if revision is None and tables:
        raise StoreError(
            f"{path} is a database of something else.",
            code="not_a_store",
            given=str(path),
            legal="a folder with an Offshoot store, or an empty folder",
            next="Choose another folder with OFFSHOOT_HOME or --store.",
        )
    if revision is not None and revision not in REVISIONS:
        raise StoreError(
            f"{path} was written by a newer version of Offshoot.",
            code="newer_schema",
            given=revision,
            legal=list(REVISIONS),
            next="Update Offshoot, or choose another folder with OFFSHOOT_HOME or --store.",
        )


def _migrate(root: Path, path: Path) -> None:
    """Bring the schema to HEAD while holding the store's schema lock; whoever waited finds the work done."""
    lock_path = root / "schema.lock"
    try:
        lock = open(lock_path, "a")  # noqa: SIM115
    except OSError as error:
        raise disk_error(error, lock_path) or error from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection = connect(path, mode="rwc")
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()
            revision, tables = _inspect(path, "rw")
            if revision == HEAD:
                return
            _check_revision(path, revision, tables)
            engine = _engine(lambda: connect(path, mode="rw"), "BEGIN IMMEDIATE")
            try:
                with engine.begin() as migrating:
                    upgrade(migrating)
            finally:
                engine.dispose()
        except (DBAPIError, sqlite3.Error) as error:
            raise translate(error, path) or error from error
