"""Opening: cold stores, old stores, foreign files, folders that cannot be written, full disks."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

import store.models as tables
from store import BlobStore, Store, StoreError, add_model, get_model, jobs, list_models, open_store, verify
from store.blobs import disk_error
from store.db import DATABASE_NAME, connect, translate
from store.migrations import HEAD, REVISIONS
from tests.store.builders import build_schema, fill_first_schema, model, new_model

ROOT = Path(__file__).parents[2]


def test_the_pragmas_that_everything_relies_on(store: Store) -> None:
    assert store.rows("PRAGMA journal_mode") == [("wal",)]
    assert store.rows("PRAGMA mmap_size") == [(0,)]
    assert store.rows("PRAGMA foreign_keys") == [(1,)]
    with store.write() as session:
        assert session.connection().exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    with pytest.raises(StoreError) as caught:
        store.rows("DELETE FROM model")
    assert caught.value.code == "read_only"


def test_a_write_transaction_takes_the_lock_at_once(store: Store) -> None:
    other = connect(store.path, mode="rw")
    other.execute("PRAGMA busy_timeout=0")
    with store.write():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert list_models(store) == []  # readers are not held up
    other.close()


def test_an_error_rolls_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.write() as session:
        session.add(tables.Worker(device="cpu", pid=1, started=1.0, registered=""))
        session.flush()
        raise ZeroDivisionError
    assert jobs.get_worker(store, "cpu") is None


_COLD = """
import sys
from store import add_model, open_store
from tests.store.builders import new_model
for root in iter(sys.stdin.readline, ""):  # both hear of a root at the same moment
    store = open_store(root.strip())
    for number in range(5):
        add_model(store, new_model(store, f"model {sys.argv[1]} {number}"))
"""


def test_two_processes_open_a_cold_store_at_once(tmp_path: Path) -> None:
    roots = [tmp_path / f"cold {number}" for number in range(3)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _COLD, str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    time.sleep(2.0)
    for root in roots:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{root}\n")
            process.stdin.flush()
        time.sleep(0.5)
    assert [process.communicate()[1] for process in processes] == ["", ""]
    for root in roots:
        opened = open_store(root)
        assert len(list_models(opened)) == 10
        assert verify(opened) == []
        opened.close()


def test_the_schema_is_what_the_tables_say(store: Store) -> None:
    engine = create_engine("sqlite://", creator=lambda: connect(store.path, mode="ro"), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()


def test_the_list_of_revisions_is_alembics() -> None:
    script = ScriptDirectory(str(ROOT / "store" / "migrations"))
    assert tuple(revision.revision for revision in script.walk_revisions())[::-1] == REVISIONS
    assert script.get_current_head() == HEAD


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_store_of_each_older_schema_opens_with_its_content(tmp_path: Path, revision: str) -> None:
    path = build_schema(tmp_path / "old", revision)
    model_id = fill_first_schema(path) if revision == REVISIONS[0] else None
    opened = open_store(tmp_path / "old")
    assert opened.rows("SELECT version_num FROM alembic_version") == [(HEAD,)]
    if model_id is not None:
        assert get_model(opened, "old baseline").note == "kept"
        assert verify(opened) == []
        model(opened, "child", get_model(opened, model_id))
    opened.close()


def test_an_empty_database_file_is_a_cold_store(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).touch()
    opened = open_store(tmp_path)
    assert list_models(opened) == []
    opened.close()


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    opened = open_store(tmp_path)
    opened.close()
    connection = connect(tmp_path / DATABASE_NAME, mode="rw")
    connection.execute("UPDATE alembic_version SET version_num='9999'")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path, read_only=read_only)
        assert caught.value.code == "newer_schema"
        assert "Update" in str(caught.value.next)


@pytest.mark.parametrize("content", [b"no database at all, but long enough to look", b"SQLite format 3\x00" + b"x" * 4096])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(content)
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path)
    assert caught.value.code == "not_a_database"
    assert (tmp_path / DATABASE_NAME).read_bytes() == content


def test_a_database_of_something_else(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path)
    assert caught.value.code == "not_a_store"


def test_no_store_where_none_should_be_made(tmp_path: Path) -> None:
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path / "none", **options)
        assert caught.value.code == "no_store"
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="not a folder"):
        open_store(tmp_path / "file")


def test_a_store_opened_for_reading_refuses_to_write(store: Store) -> None:
    model(store, "base")
    reader = open_store(store.root, read_only=True)
    assert get_model(reader, "base").name == "base"
    model(store, "later")
    assert len(list_models(reader)) == 2
    with pytest.raises(StoreError) as caught:
        jobs.submit(reader, "prune", {}, device="cpu")
    assert caught.value.code == "read_only"
    assert reader.job_folder("j_none") == store.root / "jobs" / "j_none"
    assert not (store.root / "jobs").exists()
    reader.close()


_READ_ONLY = """
import os, sys, tempfile
from pathlib import Path
from store import StoreError, list_models, open_store
with tempfile.TemporaryDirectory() as warm:
    open_store(warm).close()  # the interpreter's own files may be out of reach in a moment
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for options in ({}, {"read_only": True}):
    try:
        store = open_store(sys.argv[1], **options)
        sys.stdout.write(f"{len(list_models(store))} models\\n")
    except StoreError as error:
        sys.stdout.write(f"{error.code}: {error.next}\\n")
try:
    open_store(Path(sys.argv[1]) / "deeper")
except StoreError as error:
    sys.stdout.write(error.code)
"""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as outer:
        root = Path(outer) / "home"
        opened = open_store(root)
        model(opened, "base")
        opened.close()
        Path(outer).chmod(0o755)
        root.chmod(0o555)
        (root / DATABASE_NAME).chmod(0o444)
        answer = subprocess.run(
            [sys.executable, "-c", _READ_ONLY, str(root)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        root.chmod(0o755)
    lines = answer.stdout.splitlines()
    assert len(lines) == 3, answer.stderr
    assert lines[0].startswith("read_only: Change the folder's permissions")
    assert lines[1:] == ["1 models", "read_only"]


def test_a_full_disk_loses_nothing(store: Store) -> None:
    kept = model(store, "base")
    ((pages,),) = store.rows("PRAGMA page_count")
    with pytest.raises(StoreError) as caught, store.write() as session:
        session.connection().exec_driver_sql(f"PRAGMA max_page_count={pages}")
        for number in range(200):
            session.add(tables.Worker(device=f"device {number}" + "x" * 2000, pid=1, started=1.0, registered=""))
        session.flush()
    assert caught.value.code == "disk_full"
    assert [row.id for row in list_models(store)] == [kept.id]
    assert store.rows("SELECT count(*) FROM worker") == [(0,)]


def test_blobs(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    digest = blobs.put_bytes(b"content")
    assert blobs.put_bytes(b"content") == digest
    assert (blobs.read(digest), blobs.size(digest), blobs.verify(digest)) == (b"content", 7, True)
    given = tmp_path / "given"
    given.write_bytes(b"content")
    assert blobs.put_file(given) == digest and given.exists()
    assert blobs.put_file(given, move=True) == digest and not given.exists()
    scratch = blobs.scratch(".safetensors")
    scratch.write_bytes(b"other")
    other = blobs.put_file(scratch, move=True)
    assert not scratch.exists() and blobs.read(other) == b"other"
    scratch = blobs.scratch()
    scratch.write_bytes(b"other")
    assert blobs.put_file(scratch, move=True) == other and not scratch.exists()
    assert sorted(blobs.digests()) == sorted([digest, other])
    assert (blobs.remove(other), blobs.remove(other)) == (5, 0)
    assert list((tmp_path / "blobs" / "partial").iterdir()) == []
    blobs.scratch().write_bytes(b"left behind")
    assert blobs.remove_partials(older_than_s=60.0) == 0
    assert blobs.remove_partials(older_than_s=-1.0) == 11
    with pytest.raises(StoreError):
        blobs.path("../../etc/passwd")
    with pytest.raises(StoreError) as caught:
        blobs.read("0" * 64)
    assert caught.value.code == "missing_blob"


def test_no_half_blob_when_the_disk_is_full(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        for put in (lambda: blobs.put_bytes(source.read_bytes()), lambda: blobs.put_file(source)):
            with pytest.raises(StoreError) as caught:
                put()
            assert caught.value.code == "disk_full"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(blobs.digests()) == []
    assert list((tmp_path / "blobs" / "partial").iterdir()) == []


def test_what_sqlite_says_in_our_words(tmp_path: Path) -> None:
    for text, code in (
        ("database or disk is full", "disk_full"),
        ("attempt to write a readonly database", "read_only"),
        ("database disk image is malformed", "not_a_database"),
        ("database is locked", "busy"),
        ("unable to open database file", "no_store"),
    ):
        known = translate(sqlite3.OperationalError(text), tmp_path)
        assert known is not None and known.code == code
        assert known.to_json()["next"]
    assert translate(sqlite3.OperationalError("no such table: x"), tmp_path) is None
    assert disk_error(OSError(5, "Input/output error"), tmp_path) is None


def test_importing_the_store_loads_nothing_heavy() -> None:
    code = (
        "import sys, store\nbad = {'torch', 'numpy', 'alembic', 'core', 'dcaecore', 'streamlit'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_public_surface() -> None:
    import store as package

    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert {"open_store", "Store", "StoreError", "NewModel", "add_model", "get_model", "list_models", "jobs"} <= set(
        package.__all__
    )
    assert add_model is package.lineage.add_model
    assert new_model.__module__ == "tests.store.builders"
