"""A branch as one file: ids, figures and curves intact in another store; twice changes nothing; what is bad is refused whole."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import zipfile
import zlib
from pathlib import Path

import pytest

from store import (
    MetricWriter,
    NewImage,
    NewScores,
    Store,
    StoreError,
    add_tag,
    aliases,
    delete_model,
    get_model,
    jobs,
    list_models,
    metrics,
    open_store,
    scores,
    set_alias,
    set_note,
    verify,
)
from store.archive import LOCK_NAME, export_branch, import_archive
from store.cleaning import clean
from store.db import DATABASE_NAME, connect
from tests.store.builders import model, new_model, running_job

PROTOCOL = {"images_sha256": "abc", "num_images": 1, "image_size": 32, "dtype": "float32"}


@pytest.fixture
def branch(store: Store) -> dict[str, str]:
    """base -> middle -> leaf with a teacher from another line, a job with a curve, a log and an evaluation; a sister apart."""
    base, other = model(store, "base", dataset_identity={"source": "x"}), model(store, "other")
    middle = model(store, "middle", base, data=b"m" * 1000)
    job = running_job(store, parent=middle.id)
    with MetricWriter(store, job.id) as writer:
        for step in range(50):
            writer.log(step, {"loss": 1.0 / (step + 1)})
    (store.job_folder(job.id) / "log.jsonl").write_text('{"message": "hello"}\n')
    pairs = (("parent", middle.id), ("teacher", other.id))
    entry = NewScores(PROTOCOL, "test", {"psnr_db": 31.5}, {"psnr_db": [31.5]}, ["a"], [NewImage(0, b"png")])
    timing = {"device": "cpu", "dtype": "float32", "models": [{"model_id": base.id, "decode_ms": 2.0}]}
    made = jobs.complete(
        store, job, model=new_model(store, "leaf", pairs=pairs, kind="retrained"), scores=[entry], measurements=[timing],
        result={"plan_digest": store.blobs.put_bytes(b"plan")},
    )  # fmt: skip
    assert made.model_id is not None
    model(store, "sister", base)
    add_tag(store, "leaf", "small")
    set_note(store, "leaf", "the best")
    set_alias(store, "champion", "leaf")
    return {"base": base.id, "middle": middle.id, "other": other.id, "leaf": made.model_id, "job": job.id}


@pytest.fixture
def second(tmp_path: Path):
    opened = open_store(tmp_path / "second")
    yield opened
    opened.close()


def everything(store: Store) -> dict[str, list[tuple]]:
    tables = [name for (name,) in store.rows("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
    return {name: sorted(store.rows(f'SELECT * FROM "{name}"'), key=repr) for name in tables}


def files(store: Store) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file() and "sqlite" not in path.name}


def test_a_branch_arrives_with_all_that_it_had(store: Store, second: Store, branch, tmp_path: Path) -> None:
    model(second, "leaf", spec={"of": "another world"})
    written = export_branch(store, "leaf", tmp_path)
    assert written.path.name == f"{branch['leaf']}.offshoot.zip" and written.bytes == written.path.stat().st_size
    found = import_archive(second, written.path)
    assert set(found.models) == {branch[name] for name in ("base", "middle", "other", "leaf")} == set(written.models)
    assert (found.known, found.jobs) == ((), 1)
    here, there = get_model(store, branch["leaf"]), get_model(second, branch["leaf"])
    assert there.name == "leaf-2", "the name was taken"
    for name in ("id", "spec", "parents", "weights_digest", "blob_digest", "note", "tags", "facts", "created", "dataset"):
        assert getattr(here, name) == getattr(there, name)
    assert aliases(second) == {"champion": branch["leaf"]}
    assert metrics.series(second, branch["job"], "loss") == metrics.series(store, branch["job"], "loss")
    assert scores.scores(second, branch["leaf"]) == {"psnr_db": 31.5}
    assert scores.measurements(second, branch["base"])[0].models == {branch["base"]: {"decode_ms": 2.0}}
    assert (second.job_folder(branch["job"]) / "log.jsonl").read_text() == '{"message": "hello"}\n'
    assert second.blobs.read(jobs.get_job(second, branch["job"]).result["plan_digest"]) == b"plan"
    assert [row.name for row in list_models(second, text="sister")] == [] and verify(second) == []
    assert clean(second).bytes_freed == 0, "everything that came has its owner"


def test_twice_changes_nothing(store: Store, second: Store, branch, tmp_path: Path) -> None:
    path = export_branch(store, "leaf", tmp_path / "a.zip").path
    import_archive(second, path)
    rows, there = everything(second), files(second)
    again = import_archive(second, path)
    assert again.models == () and len(again.known) == 4 and again.jobs == 0
    assert everything(second) == rows and files(second) == there
    assert import_archive(store, path).models == (), "and where it came from nothing at all"


def test_descendants_come_on_request_and_the_deleted_as_tombstones(store: Store, second: Store, branch, tmp_path: Path) -> None:
    delete_model(store, "middle", keep_descendants=True)
    path = export_branch(store, "base", tmp_path / "a.zip", with_descendants=True).path
    found = import_archive(second, path)
    assert {get_model(second, ref).name for ref in found.models} == {"base", "other", "leaf", "sister"}
    assert get_model(second, branch["middle"], deleted=True).blob_digest is None and verify(second) == []
    with pytest.raises(StoreError, match="deleted"):
        export_branch(store, branch["middle"], tmp_path / "b.zip")


def test_a_tombstone_comes_back_to_life(store: Store, second: Store, branch, tmp_path: Path) -> None:
    path = export_branch(store, "leaf", tmp_path / "a.zip").path
    import_archive(second, path)
    delete_model(second, branch["middle"], keep_descendants=True)
    clean(second)
    assert import_archive(second, path).models == (branch["middle"],)
    assert get_model(second, "middle").blob_digest == get_model(store, "middle").blob_digest and verify(second) == []


def repacked(path: Path, target: Path, change) -> Path:
    """The archive with its files changed by `change(name, data) -> data or None`, with a fresh digest of the database."""
    from hashlib import sha256

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        kept = {name: data for name in old.namelist() if (data := change(name, old.read(name))) is not None}
        manifest = json.loads(kept["manifest.json"])
        manifest["database_sha256"] = sha256(kept[DATABASE_NAME]).hexdigest()
        for name, data in {**kept, "manifest.json": json.dumps(manifest).encode()}.items():
            new.writestr(name, data)
    return target


def with_sql(sql: str, folder: Path):
    """Changes the archive's database by a statement."""

    def change(name: str, data: bytes) -> bytes:
        if name != DATABASE_NAME:
            return data
        path = folder / "changed.sqlite"
        path.write_bytes(data)
        connection = sqlite3.connect(path)
        connection.execute(sql)
        connection.commit()
        connection.close()
        return path.read_bytes()

    return change


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("cut short", "bad_archive", "cut short"),
        ("a bit of a blob", "bad_archive", "Bad CRC|was changed"),
        ("another blob", "bad_archive", "was changed"),
        ("a missing blob", "bad_archive", "missing"),
        ("a row of the database", "bad_archive", "hashed from"),
        ("its baseline is missing", "bad_archive", "parent .* is missing"),
        ("a newer format", "newer_archive", "another version"),
        ("a newer schema", "newer_schema", "newer version"),
        ("a foreign file", "bad_archive", "it holds"),
        ("no database", "bad_archive", "cannot be taken in"),
        ("text", "bad_archive", "no archive"),
        ("a manifest that is a list", "bad_archive", "manifest is altered"),
        ("a manifest that is no JSON", "bad_archive", "manifest cannot be read"),
        ("another packing", "bad_archive", "packed in another way"),
    ],
)
def test_what_is_bad_is_refused_whole(store: Store, second: Store, branch, tmp_path: Path, damage, code, words) -> None:
    good = export_branch(store, "leaf", tmp_path / "good.zip").path
    data, bad = good.read_bytes(), tmp_path / "bad.zip"
    if damage == "cut short":
        bad.write_bytes(data[: len(data) * 2 // 3])
    elif damage == "a bit of a blob":
        at = data.index(b"m" * 100)
        bad.write_bytes(data[:at] + b"n" + data[at + 1 :])
    elif damage == "another blob":
        repacked(good, bad, lambda name, found: b"else" if name.startswith("blobs/") else found)
    elif damage == "a missing blob":
        repacked(good, bad, lambda name, found: None if name.startswith("blobs/") else found)
    elif damage == "a row of the database":
        repacked(good, bad, with_sql("UPDATE model SET kind='baseline' WHERE name='leaf'", tmp_path))
    elif damage == "its baseline is missing":
        repacked(good, bad, with_sql("DELETE FROM model WHERE name='base'", tmp_path))
    elif damage == "a newer format":
        repacked(good, bad, lambda name, found: found.replace(b'"format": 1', b'"format": 2'))
    elif damage == "a newer schema":
        repacked(good, bad, with_sql("UPDATE alembic_version SET version_num='9999'", tmp_path))
    elif damage == "a foreign file":
        bad.write_bytes(data)
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("../../outside.txt", "x")
    elif damage == "no database":
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("manifest.json", '{"format": 1, "database_sha256": ""}')
    elif damage.startswith("a manifest"):
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr(DATABASE_NAME, b"")
            archive.writestr("manifest.json", "[]" if damage.endswith("list") else b"\xff{")
    elif damage == "another packing":
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w", zipfile.ZIP_BZIP2) as archive:
            for name in old.namelist():
                archive.writestr(name, old.read(name))
    else:
        bad.write_text("not a zip")
    model(second, "mine")
    rows, there = everything(second), files(second)
    with pytest.raises(StoreError, match=words) as caught:
        import_archive(second, bad)
    assert caught.value.code == code and caught.value.next
    assert everything(second) == rows and files(second) - {LOCK_NAME} == there
    assert not (tmp_path / "outside.txt").exists()


def _central(good: bytes, name: str) -> int:
    """Where the central directory's entry of a name begins: 46 bytes, then the name."""
    return good.rindex(name.encode()) - 46


def _altered(good: bytes, at: int, field: bytes) -> bytes:
    return good[:at] + field + good[at + len(field) :]


def _stored(good: bytes) -> bytes:
    """The database said to be packed in no way."""
    return _altered(good, _central(good, DATABASE_NAME) + 10, b"\0\0")


@pytest.mark.parametrize(
    ("raised", "damaged"),
    [
        (zipfile.BadZipFile, lambda good: good[: len(good) // 2]),
        (EOFError, lambda good: _altered(_stored(good), _central(good, DATABASE_NAME) + 20, (1 << 24).to_bytes(4, "little") * 2)),
        # The directory asks for version 9.9 of the format, where zipfile knows 6.3; then it says that the database is encrypted.
        (RuntimeError, lambda good: _altered(good, _central(good, DATABASE_NAME) + 6, (99).to_bytes(2, "little"))),
        (RuntimeError, lambda good: _altered(good, _central(good, DATABASE_NAME) + 8, b"\1")),
        (zlib.error, lambda good: _altered(good, good.index(DATABASE_NAME.encode()) + len(DATABASE_NAME), b"\xff" * 8)),
    ],
)
def test_each_way_in_which_zipfile_names_damage(store: Store, second: Store, branch, tmp_path: Path, raised, damaged) -> None:
    good = export_branch(store, "leaf", tmp_path / "good.zip").path.read_bytes()
    (tmp_path / "bad.zip").write_bytes(damaged(good))
    with pytest.raises(StoreError) as caught:
        import_archive(second, tmp_path / "bad.zip")
    assert caught.value.code == "bad_archive" and isinstance(caught.value.__cause__, raised)
    assert list_models(second) == []


def test_any_altered_bit_is_refused_or_harmless(store: Store, second: Store, branch, tmp_path: Path) -> None:
    """Every byte of the zip's own structure, and a sample of the rest: one clear refusal, or (a date, an attribute) the same models."""
    good = export_branch(store, "leaf", tmp_path / "good.zip").path.read_bytes()
    with zipfile.ZipFile(tmp_path / "good.zip") as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
        directory = archive.start_dir
    structure = [at for start in starts for at in range(start, start + 30)] + list(range(directory, len(good)))
    places = sorted({*structure[::3], *range(0, len(good), max(1, len(good) // 60))})
    refused = 0
    for turn, at in enumerate(places):
        bad = tmp_path / "bad.zip"
        bad.write_bytes(good[:at] + bytes([good[at] ^ (1 << turn % 8)]) + good[at + 1 :])
        try:
            import_archive(second, bad)
        except StoreError as error:
            assert error.code in ("bad_archive", "newer_archive"), (at, error)
            refused += 1
    assert refused > len(places) / 2
    assert verify(second) == [] and {row.id for row in list_models(second)} == {
        ref for ref in branch.values() if ref.startswith("m_")
    }


def test_one_import_at_a_time(store: Store, second: Store, branch, tmp_path: Path) -> None:
    path = export_branch(store, "leaf", tmp_path / "a.zip").path
    with (second.root / LOCK_NAME).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="being imported") as caught:
            import_archive(second, path)
        assert caught.value.code == "import_busy" and list_models(second) == []
    outcomes: list[object] = []

    def take() -> None:
        try:
            outcomes.append(len(import_archive(second, path).models))
        except StoreError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(4) == 1 and set(outcomes) <= {4, 0, "import_busy"} and verify(second) == []


def test_what_cannot_be_written_or_read(store: Store, branch, tmp_path: Path) -> None:
    (tmp_path / "taken.zip").write_text("mine")
    with pytest.raises(StoreError, match="there already"):
        export_branch(store, "leaf", tmp_path / "taken.zip")
    assert (tmp_path / "taken.zip").read_text() == "mine"
    with pytest.raises(StoreError, match="no folder"):
        export_branch(store, "leaf", tmp_path / "nowhere" / "a.zip")
    with pytest.raises(StoreError, match="no file"):
        import_archive(store, tmp_path / "nothing.zip")
    store.blobs.remove(str(get_model(store, "middle").blob_digest))
    with pytest.raises(StoreError, match="missing"):
        export_branch(store, "leaf", tmp_path / "b.zip")
    assert {path.name for path in tmp_path.iterdir()} <= {"taken.zip", "home", "second"}


def test_an_archive_of_an_older_schema_is_read(second: Store, tmp_path: Path) -> None:
    """A database of the first revision, as an older version would have written it."""
    from hashlib import sha256

    from tests.store.builders import build_schema, fill_first_schema

    path = build_schema(tmp_path / "old", "0001")
    ref = fill_first_schema(path)
    connection = connect(path, mode="rw")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    (blob,) = (tmp_path / "old" / "blobs").glob("*/*")
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.write(path, DATABASE_NAME)
        archive.write(blob, f"blobs/{blob.parent.name}/{blob.name}")
        manifest = {"format": 1, "schema": "0001", "database_sha256": sha256(path.read_bytes()).hexdigest()}
        archive.writestr("manifest.json", json.dumps(manifest))
    assert import_archive(second, tmp_path / "old.zip").models == (ref,) and verify(second) == []
