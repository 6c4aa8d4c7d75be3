"""Bad input: one clear message that says what is legal, no half-made model, nothing lost."""

from __future__ import annotations

import io
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import store as st
from core.errors import CoreError, as_error, legal_text
from core.jobs.worker import serve
from core.model_manager import ModelManager
from core.operations import prune
from core.operations.context import Context
from core.specs import PruneSpec
from dcaecore import DCAE, VARIANTS, CheckpointError, DataError, Layout, save_model
from store import StoreError, open_store

ROOT = Path(__file__).resolve().parents[2]
TINY = VARIANTS["tiny"]
RETRAIN = {"image_size": 32, "n_epochs": 1, "steps_per_epoch": 1, "warmup_epochs": 0, "val_steps": 2, "num_workers": 0}


@pytest.fixture(scope="module")
def bench(bench):
    bench.add()
    return bench


@pytest.fixture
def manager(bench):
    """A service over the bench's store."""
    made = ModelManager(settings=bench.settings)
    yield made
    made.store.close()


@pytest.fixture(autouse=True)
def nothing_is_lost(bench):
    """After each test: the one model there was, whole, and no half-written file."""
    before = st.list_models(bench.store)
    yield
    assert st.list_models(bench.store) == before and len(before) == 1
    assert st.verify(bench.store) == []
    assert list((bench.store.root / "blobs" / "partial").iterdir()) == []


def clear(error: BaseException) -> str:
    """The message of a user's mistake: one line, with what is legal or what to do next."""
    fields = as_error(error)
    assert fields is not None, f"a bug to the user: {error!r}"
    assert fields["message"] and "\n" not in fields["message"].strip()
    assert fields["legal"] is not None or fields["next"]
    return str(fields["message"])


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def weights(broken: str, folder: Path) -> Path:
    """A file that no model comes of."""
    state = DCAE(TINY).state_dict()
    path = folder / ("weights.pth" if broken.startswith("pickle") else "weights.safetensors")
    if broken == "noise":
        path.write_bytes(b"this is no checkpoint at all")
    elif broken == "empty":
        path.touch()
    elif broken == "cut short":
        save_model(path, state, config=TINY, layout=Layout())
        path.write_bytes(path.read_bytes()[:-100])
    elif broken == "pickle with code":
        torch.save({"state_dict": state, "hook": Attack()}, path)
    elif broken == "pickle cut short":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-4000])
    elif broken == "another model":
        save_file({"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3)}, path)
    elif broken == "a key too few":
        save_model(path, {k: v for k, v in state.items() if k != "encoder.conv_out.bias"}, config=TINY, layout=Layout())
    return path


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("noise", "no safetensors file"),
        ("empty", "no safetensors file"),
        ("cut short", "is cut short"),
        ("pickle with code", "not executed"),
        ("pickle cut short", "no whole PyTorch checkpoint"),
        ("another model", "holds another model"),
        ("a key too few", "lacks encoder.conv_out.bias"),
        ("nothing there", "There is no model"),
    ],
)
def test_a_file_that_is_no_whole_model(bench, tmp_path, monkeypatch, broken, words):
    monkeypatch.chdir(tmp_path)
    path = weights(broken, tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        bench.run("import", source=str(path))
    assert path.name in clear(caught.value) and not (tmp_path / "attacked").exists()
    (job,) = st.jobs.list_jobs(bench.store, limit=1)
    assert job.state == "failed" and job.model_id is None


@pytest.mark.parametrize("rate", [0, 1, 1.5, -0.5, 0.05, math.nan, math.inf, "half"])
def test_a_rate_that_cannot_be(manager, rate):
    (row,) = manager.list_models()
    for method in ("l2_structured", "l1_unstructured", "global_magnitude"):
        with pytest.raises(CoreError, match="rate") as caught:
            manager.prune_model(row.id, {"method": method, "rate": rate})
        clear(caught.value)
        assert caught.value.code == "bad_spec"
    with pytest.raises(CoreError, match=r"give a rate \(0.1 to 0.9\)"):
        manager.prune_model(row.id, {"rate": None})
    assert not [job for job in manager.jobs() if job.operation == "prune"]


@pytest.mark.parametrize(
    ("fields", "words", "legal"),
    [
        ({"init_lr": 0}, "init_lr: 0 cannot be", "0.0 to 1.0, without 0.0 itself"),
        ({"n_epochs": -1}, "n_epochs: -1 cannot be", "1 to 100000"),
        ({"lr_schedule_name": "cosin"}, "lr_schedule_name: 'cosin' cannot be", "cosine, constant, linear"),
        ({"data": "frames"}, "data: 'frames' cannot be", "an object"),
        ({"data": {"kind": "foldr"}}, "data.kind: 'foldr' cannot be", "'sample', 'hub', 'parquet' or 'folder'"),
        ({"min_lr": 1.0}, "min_lr 1 is above init_lr", "0 to 0.001"),
        ({"data": {"kind": "folder", "location": "none-such"}}, "no folder 'none-such'", "a folder of pictures"),
        ({"more_data": ({"kind": "parquet", "location": "none-such"},)}, "No parquet file", "a .parquet file"),
        ({"teacher": "none-such", "distill_output_weight": 1.0}, "No model is called", "an id"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_it_is_queued(manager, fields, words, legal):
    (row,) = manager.list_models()
    before = manager.jobs()
    with pytest.raises(Exception, match=re.escape(words)) as caught:
        manager.retrain_model(row.id, {**RETRAIN, "init_lr": 1e-3, **fields})
    clear(caught.value)
    assert legal in legal_text(caught.value.legal)
    assert manager.jobs() == before


@pytest.mark.parametrize("size", [33, 100, 17])
def test_an_image_size_that_does_not_divide(manager, size):
    (row,) = manager.list_models()
    before = manager.jobs()
    for submit in (manager.retrain_model, manager.evaluate_model, manager.benchmark_models):
        with pytest.raises(Exception, match=f"{size} x {size} px do not divide") as caught:
            submit(row.id, {"image_size": size})
        clear(caught.value)
        assert caught.value.legal == "multiples of 8"
    assert manager.jobs() == before


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, count: int, **columns) -> Path:
    """`count` images, each another one, without compression."""
    cells = [{"bytes": png(index), "path": None} for index in range(count)]
    images = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"frame_image": images, **columns}), path, compression="NONE")
    return path


def data(broken: str, folder: Path) -> dict[str, str]:
    """A data spec that no training comes of."""
    path = folder / "frames.parquet"
    if broken == "no rows":
        parquet(path, 0)
    elif broken == "no parquet":
        path.write_bytes(b"no parquet at all")
    elif broken == "damaged pages":
        raw = bytearray(parquet(path, 60).read_bytes())
        raw[4:2000] = bytes(byte ^ 0x5A for byte in raw[4:2000])  # the footer, which opening reads, is whole
        path.write_bytes(bytes(raw))
    elif broken == "other columns":
        parquet(folder / "a.parquet", 3)
        pq.write_table(pa.table({"x": [1, 2]}), folder / "b.parquet")
        return {"kind": "parquet", "location": str(folder)}
    elif broken == "two images":
        parquet(path, 2)
    elif broken == "broken images":
        images = pa.array([{"bytes": bytes([n] * 9), "path": None} for n in range(9)])
        pq.write_table(pa.table({"frame_image": images}), path)
    elif broken == "empty cells":
        images = pa.array([None] * 9, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"frame_image": images}), path)
    elif broken == "no images":
        parquet(path, 9, action=pa.array(range(9)))
        return {"kind": "parquet", "location": str(path), "column": "action"}
    elif broken == "no column":
        parquet(path, 9)
        return {"kind": "parquet", "location": str(path), "column": "picture"}
    elif broken == "no pictures":
        return {"kind": "folder", "location": str(folder)}
    elif broken == "no such set":
        return {"kind": "sample", "location": "tetris"}
    return {"kind": "parquet", "location": str(path)}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("nothing there", "No parquet file"),
        ("no rows", "empty"),
        ("no parquet", "no readable parquet"),
        ("damaged pages", "could not be read"),
        ("other columns", "could not be read"),
        ("two images", "2 different images are too few"),
        ("broken images", "no readable image"),
        ("empty cells", "the cell is empty"),
        ("no images", "holds no images"),
        ("no column", "no column 'picture'"),
        ("no pictures", "No pictures"),
        ("no such set", "no sample set 'tetris'"),
    ],
)
def test_a_data_set_that_is_empty_or_unreadable(bench, tmp_path, broken, words):
    (row,) = st.list_models(bench.store)
    for operation, fields in (("retrain", RETRAIN), ("evaluate", {"image_size": 32, "num_images": 2})):
        with pytest.raises(DataError, match=words) as caught:
            bench.run(operation, row.id, **fields, data=data(broken, tmp_path))
        clear(caught.value)
        assert st.jobs.list_jobs(bench.store, limit=1)[0].state == "failed"
    assert st.scores.scores(bench.store, row.id) == {}


def test_no_disk_space_for_a_model_and_then_there_is(bench, monkeypatch):
    """Writes over a size are refused by the system, as they are on a full disk."""
    (row,) = st.list_models(bench.store)

    def save(*arguments, **options):
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        try:
            save_model(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    with monkeypatch.context() as full:
        full.setattr("core.operations.models.save_model", save)
        bench.submit("prune", row.id, method="global_magnitude", rate=0.5)
        job = bench.claim()
        with pytest.raises(CheckpointError, match="could not be written") as caught:
            bench.perform(job)
    clear(caught.value)
    assert list((bench.store.root / "blobs" / "partial").iterdir()) == []
    assert "disk space" in caught.value.next and st.jobs.get_job(bench.store, job.id).state == "failed"
    st.jobs.resume(bench.store, job.id)
    again = bench.claim()
    context = Context(bench.store, again, bench.settings)
    made = prune.run(PruneSpec.model_validate(again.spec), context).model
    context.close()
    assert made.facts["sparsity"] > 0.4  # nothing of the first try is in the way
    st.jobs.fail(bench.store, again, {"code": "x", "message": "not stored"})


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.get_model("m_ffffffffffff"),
        lambda m: m.prune_model("m_ffffffffffff"),
        lambda m: m.retrain_model("nobody", {"image_size": 32}),
        lambda m: m.evaluate_model("nobody", {"image_size": 32}),
        lambda m: m.benchmark_models(["nobody"], {"image_size": 32}),
        lambda m: m.compress("nobody"),
        lambda m: m.prune_in_rounds("nobody"),
        lambda m: m.compare(["nobody"]),
        lambda m: m.promote("nobody"),
        lambda m: m.save_to_file("nobody", "."),
        lambda m: m.verify("nobody"),
        lambda m: m.delete("nobody"),
        lambda m: m.job("j_ffffffffffff"),
        lambda m: m.control("j_ffffffffffff", "cancel"),
        lambda m: m.wait("j_ffffffffffff"),
        lambda m: m.prune_model({"job": "j_ffffffffffff"}),
    ],
)
def test_an_unknown_id(manager, call):
    before = manager.jobs()
    with pytest.raises(StoreError, match="nobody|ffffffffffff") as caught:
        call(manager)
    clear(caught.value)
    assert caught.value.code in ("unknown_model", "unknown_job") and manager.jobs() == before


def test_two_workers_for_one_device(bench):
    with st.jobs.lock_worker(bench.store, "cpu"):
        st.jobs.register_worker(bench.store, "cpu", os.getpid(), psutil.Process().create_time())
        with pytest.raises(StoreError, match=f"already serves cpu.*{os.getpid()}") as caught:
            serve(bench.settings, "cpu", preload=())
    clear(caught.value)
    assert caught.value.code == "worker_exists"


_READ_ONLY = """
import json, os, sys
from core.errors import as_error
from core.model_manager import ModelManager
from store import open_store
import tempfile
with tempfile.TemporaryDirectory() as warm:
    open_store(warm).close()  # what is imported late may be out of reach in a moment
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    ModelManager(sys.argv[1])
except Exception as error:
    print(json.dumps(as_error(error)))
"""


def test_a_read_only_store():
    with tempfile.TemporaryDirectory() as outer:
        root = Path(outer) / "home"
        open_store(root).close()
        Path(outer).chmod(0o755)
        root.chmod(0o555)
        before = sorted(root.rglob("*"))
        done = subprocess.run([sys.executable, "-c", _READ_ONLY, str(root)], cwd=ROOT, capture_output=True, text=True, check=True)
        assert sorted(root.rglob("*")) == before
        root.chmod(0o755)
        opened = open_store(root)
        assert st.verify(opened) == []
        opened.close()
    error = json.loads(done.stdout)
    assert error["code"] == "read_only" and str(root) in error["message"]
    assert "OFFSHOOT_HOME" in error["next"] and error["legal"]


def test_a_store_that_is_read_by_others_only_takes_no_job(bench):
    (row,) = st.list_models(bench.store)
    reader = open_store(bench.store.root, read_only=True)
    with pytest.raises(StoreError) as caught:
        st.jobs.submit(reader, "prune", {}, parent=row.id, device="cpu")
    clear(caught.value)
    assert caught.value.code == "read_only"
    reader.close()
