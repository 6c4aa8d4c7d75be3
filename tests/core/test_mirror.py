"""The mirror: what W&B's own offline files say is what the store says, point for point; broken, it costs the store nothing."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

import store.jobs as jobs
from core import mirror
from core.errors import CoreError
from core.mirror import modes
from core.mirror import runs as mirror_runs
from core.mirror.verifying import compare_run, verify_target
from core.mirror.wandb_file import payloads, read_run, run_files
from core.model_manager import ModelManager
from core.settings import Settings
from core.specs import BenchmarkSpec, EvaluateSpec, ImportSpec, PruneSpec, RetrainSpec, Spec
from store import (
    JobRow,
    MetricWriter,
    NewImage,
    NewModel,
    NewScores,
    Store,
    get_model,
    metrics,
    mirrored,
    open_store,
    set_mirrored,
    verify,
)

NUM_STEPS = 600
"""Enough for the largest run's file to span several blocks of 32 KiB."""
KEY = "0123456789" * 4
PROTOCOL = {"images_sha256": "abc", "num_images": 2, "image_size": 64, "dtype": "float32"}
ODD_VALUES = {3: math.nan, 4: math.inf, 5: -math.inf, 6: 5e-324, 7: 0.1 + 0.2, 8: -0.0, 9: 1e308}


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 255 - shade, 7)).save(out, format="PNG")
    return out.getvalue()


def new_model(store: Store, name: str, spec: Spec, kind: str, parents: tuple[str, ...] = (), **changes: Any) -> NewModel:
    weights = changes.pop("weights", f"weights of {name}".encode())
    fields: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "family": "dcae",
        "config": {"widths": [16, 32], "latent_channels": 4},
        "layout": {"kept": {}},
        "spec": spec.identity_spec(),
        "parents": tuple(("parent", parent) for parent in parents),
        "weights_digest": hashlib.sha256(name.encode()).hexdigest(),
        "blob_digest": store.blobs.put_bytes(weights),
        "bytes": len(weights),
        "facts": {"parameters": 1000.0, "sparsity": 0.25},
    }
    return NewModel(**{**fields, **changes})


def start(store: Store, spec: Spec, parent: str | None = None, name: str | None = None) -> JobRow:
    jobs.submit(store, spec.operation, spec.model_dump(mode="json"), parent=parent, device="cpu", name=name)
    claimed = jobs.claim(store, "cpu", "test")
    assert claimed is not None
    return jobs.set_running(store, claimed, 4242, 1000.0)


def curve(step: int) -> dict[str, float]:
    values = {"loss": ODD_VALUES.get(step, 1.0 / step), "learning_rate": 1e-4 * math.cos(step / 100)}
    if step % 100 == 0:
        values["val_psnr_db"] = 20 + math.log(step)
    return values


def build_branch(store: Store, num_steps: int = 10) -> dict[str, JobRow]:
    """import -> prune -> retrain -> evaluate -> benchmark, as the demo's branch; returns the finished jobs."""
    done: dict[str, JobRow] = {}
    job = start(store, ImportSpec(source="tiny", random_seed=0), name="import")
    made = new_model(store, "dcae_tiny", ImportSpec(source="tiny", random_seed=0), "baseline")
    done["import"] = jobs.complete(store, job, model=made, result={"variant": "tiny", "notes": ["random weights"]})
    baseline = done["import"].model_id
    assert baseline is not None

    prune = PruneSpec(method="l2_structured", rate=0.5)
    job = start(store, prune, baseline, name="dcae_l2structured_0.50_20260214-153000")
    made = new_model(store, job.name, prune, "pruned", (baseline,))
    done["prune"] = jobs.complete(store, job, model=made, result={"achieved_rate": 0.48})
    pruned = done["prune"].model_id
    assert pruned is not None

    retrain = RetrainSpec(n_epochs=6, steps_per_epoch=100, warmup_epochs=0)
    job = start(store, retrain, pruned)
    with MetricWriter(store, job.id) as writer:
        for step in range(1, num_steps + 1):
            writer.log(step, curve(step))
    made = new_model(store, "dcae_retrained", retrain, "retrained", (pruned,), dataset_identity={"source": "sample:mspacman"})
    done["retrain"] = jobs.complete(store, job, model=made, result={"steps": num_steps, "best_value": 26.9})
    retrained = done["retrain"].model_id

    job = start(store, EvaluateSpec(), retrained)
    entry = NewScores(
        protocol=PROTOCOL,
        split="test",
        means={"psnr_db": 27.123456789, "foreground_psnr_db": None},
        per_image={"psnr_db": [27.0, 27.2]},
        row_ids=["a", "b"],
        images=[NewImage(0, png(10), "original"), NewImage(0, png(200)), NewImage(1, png(90), "original"), NewImage(1, png(40))],
    )
    done["evaluate"] = jobs.complete(store, job, scores=[entry])

    job = start(store, BenchmarkSpec(), retrained)
    rows = [{"model_id": retrained, "decode_ms": 3.5}, {"model_id": baseline, "decode_ms": 7.25}]
    measurement = {"device": "cpu", "dtype": "float32", "repeats": 5, "models": rows}
    done["benchmark"] = jobs.complete(store, job, measurements=[measurement])
    return done


def content(store: Store) -> list[Any]:
    """Every row of the store but the mirror's own memory."""
    tables = [name for (name,) in store.rows("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
    return [(name, store.rows(f'SELECT * FROM "{name}"')) for name in tables if name != "mirror"]


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("OFFSHOOT_MIRROR", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def mirrored_branch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One branch, mirrored once into a folder of its own; the tests that follow only read it."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("w") / "mirror"
    with closing(open_store(home)) as store:
        done = build_branch(store, NUM_STEPS)
        before = content(store)
        model = done["retrain"].model_id
        assert model is not None
        with pytest.MonkeyPatch.context() as patched:
            for name, value in (("API_KEY", KEY), ("MODE", "disabled"), ("RUN_ID", "somebody-elses"), ("DISABLED", "true")):
                patched.setenv(f"WANDB_{name}", value)
            report = mirror.mirror_branch(store, model, "offline", folder, project="of-the-test")
        files = run_files(folder)
        by_id = {run.id: run for run in map(read_run, files)}
        runs = {operation: by_id[job.id] for operation, job in done.items()}
        yield {
            "store": store, "folder": folder, "done": done, "before": before, "report": report, "files": files, "runs": runs,
        }  # fmt: skip


def same(left: float, right: float) -> bool:
    return (math.isnan(left) and math.isnan(right)) or left == right


# What was written ---------------------------------------------------------------------------------------------------------


def test_each_finished_job_is_one_run_in_topological_order(mirrored_branch):
    report, done = mirrored_branch["report"], mirrored_branch["done"]
    assert report.problem is None and report.waiting == []
    assert len(report.notes) == 3 and all("no safetensors file" in note for note in report.notes), "stand-ins for weights"
    assert list(report.sent) == [done[operation].id for operation in ("import", "prune", "retrain", "evaluate", "benchmark")]
    assert len(mirrored_branch["files"]) == 5
    for operation, run in mirrored_branch["runs"].items():
        assert (run.job_type, run.project, run.exit_code) == (operation, "of-the-test", 0)
        assert (mirrored_branch["folder"] / report.sent[done[operation].id] / f"run-{done[operation].id}.wandb").is_file()


def test_names_groups_and_tags(mirrored_branch):
    runs, done = mirrored_branch["runs"], mirrored_branch["done"]
    stamp = {name: job.created[:19].replace("-", "").replace(":", "").replace("T", "-") for name, job in done.items()}
    assert runs["import"].name == f"dcae_baseline_0.00_{stamp['import']}"
    assert runs["prune"].name == "dcae_l2structured_0.50_20260214-153000", "the job's own telling name is kept"
    assert runs["retrain"].name == f"dcae_l2structured_0.50_{stamp['retrain']}"
    assert runs["evaluate"].name == f"dcae_l2structured_0.50_{stamp['evaluate']}"
    for operation, run in runs.items():
        assert run.group == done["import"].model_id
        assert run.tags == [operation]


def test_config_holds_the_full_spec_and_all_ids(mirrored_branch):
    store, done = mirrored_branch["store"], mirrored_branch["done"]
    for operation, run in mirrored_branch["runs"].items():
        job = jobs.get_job(store, done[operation].id)
        assert run.config["spec"] == json.loads(json.dumps(job.spec))
        assert (run.config["operation"], run.config["job_id"]) == (operation, job.id)
        assert (run.config["made_model_id"], run.config["baseline_id"]) == (job.model_id, done["import"].model_id)
        subject = get_model(store, job.model_id or job.parent_model_id)
        assert run.config["model"]["id"] == subject.id
        assert run.config["model"]["parents"] == [list(pair) for pair in subject.parents]
        assert run.config["parent_ids"] == ([job.parent_model_id] if job.parent_model_id else [])
    assert set(RetrainSpec.model_fields) <= set(mirrored_branch["runs"]["retrain"].config["spec"])


def test_every_point_of_every_curve(mirrored_branch):
    store, done = mirrored_branch["store"], mirrored_branch["done"]
    for operation, run in mirrored_branch["runs"].items():
        keys = metrics.keys(store, done[operation].id)
        for key in keys:
            steps, values = metrics.series(store, done[operation].id, key)
            sent = run.curve(key)
            assert [step for step, _ in sent] == steps
            assert all(same(a, b) for (_, a), b in zip(sent, values, strict=True)), key
        shown = ("_", "original", "reconstruction", "comparison", "log", "weights/")
        logged = {name for row in run.history for name in row if not name.startswith(shown)}
        assert logged - {"step"} == set(keys), "nothing that the store does not have"
        assert run.step_metrics["*"] == "step"
    run = mirrored_branch["runs"]["retrain"]
    assert run.curve("step") == [*((step, step) for step in range(1, NUM_STEPS + 1)), (NUM_STEPS + 1, NUM_STEPS)]
    moments = store.rows("SELECT time FROM metric WHERE job=? ORDER BY step", (run.id,))
    assert [row["_timestamp"] for row in run.history[:-1]] == [moment for (moment,) in moments], (
        "the time of the job, not of the replay"
    )


def test_final_figures_stand_in_the_summary(mirrored_branch):
    runs, done = mirrored_branch["runs"], mirrored_branch["done"]
    assert (
        runs["retrain"].summary["result.best_value" if "result.best_value" in runs["retrain"].summary else "result/best_value"]
        == 26.9
    )
    assert same(runs["retrain"].summary["loss"], curve(NUM_STEPS)["loss"])
    assert runs["prune"].summary["model/sparsity"] == 0.25
    assert runs["evaluate"].summary["test/psnr_db"] == 27.123456789
    assert runs["evaluate"].summary["test/foreground_psnr_db"] is None
    subject = done["retrain"].model_id
    assert runs["evaluate"].config["protocols"] == {f"test/{subject}": PROTOCOL}
    assert runs["benchmark"].summary[f"benchmark/{subject}/decode_ms"] == 3.5
    assert runs["benchmark"].summary[f"benchmark/{done['import'].model_id}/decode_ms"] == 7.25
    assert runs["benchmark"].config["measurements"] == [{"device": "cpu", "dtype": "float32", "repeats": 5}]


def test_reconstructions_are_the_stored_pictures(mirrored_branch):
    run, report = mirrored_branch["runs"]["evaluate"], mirrored_branch["report"]
    (row,) = run.history
    folder = mirrored_branch["folder"] / report.sent[run.id] / "files"
    for kind, shades in (("originals", (10, 90)), ("reconstructions", (200, 40))):
        assert row[f"{kind}._type"] == "images/separated"
        assert row[f"{kind}.captions"] == [f"{kind[:-1]} 0", f"{kind[:-1]} 1"]
        for name, shade in zip(row[f"{kind}.filenames"], shades, strict=True):
            with Image.open(folder / name) as shown, Image.open(io.BytesIO(png(shade))) as stored:
                assert shown.tobytes() == stored.tobytes()


def test_models_are_artifacts_with_the_edges_of_the_store(mirrored_branch):
    """Pins `run._log_artifact(..., use_after_commit=True)`, the one way to an edge without a server (wandb is pinned)."""
    store, runs, done = mirrored_branch["store"], mirrored_branch["runs"], mirrored_branch["done"]
    outputs = {}
    for operation in ("import", "prune", "retrain"):
        (made,) = [artifact for artifact in runs[operation].artifacts if not artifact.uses and artifact.type == "model"]
        row = get_model(store, done[operation].model_id)
        assert (made.name, made.type, made.metadata["id"]) == (f"dcae-{row.id}", "model", row.id)
        assert made.metadata["parents"] == [list(pair) for pair in row.parents]
        assert made.metadata["parent_ids"] == [parent for _, parent in row.parents]
        assert made.metadata["job_id"] == done[operation].id
        weights = Path(made.files["model.safetensors"])
        assert weights.is_relative_to(mirrored_branch["folder"]), "offline runs need nothing outside their folder"
        assert weights.read_bytes() == store.blobs.read(row.blob_digest)
        assert json.loads(Path(made.files["model.json"]).read_text())["id"] == row.id
        outputs[row.id] = made
    assert len({made.digest for made in outputs.values()}) == 3
    edges = set()
    for operation, run in runs.items():
        for used in (artifact for artifact in run.artifacts if artifact.uses):
            model_id = used.metadata["id"]
            assert (used.name, used.digest) == (outputs[model_id].name, outputs[model_id].digest), "the very same artifact"
            if done[operation].model_id:
                edges.add((done[operation].model_id, model_id))
            else:
                assert model_id == done[operation].parent_model_id
    assert edges == {(child, parent) for child, parent in store.rows("SELECT child, parent FROM edge")}
    assert [artifact.uses for artifact in runs["evaluate"].artifacts if artifact.type == "model"] == [True]


def test_the_store_is_whole_and_remembers(mirrored_branch):
    store, done, report = mirrored_branch["store"], mirrored_branch["done"], mirrored_branch["report"]
    assert content(store) == mirrored_branch["before"]
    assert verify(store) == []
    rows = mirrored(store, report.target)
    assert set(rows) == {job.id for job in done.values()}
    row = rows[done["retrain"].id]
    assert row.progress["state"] == "sent" and row.remote == report.sent[row.subject]
    assert row.progress["points"] == sum(len(curve(step)) for step in range(1, NUM_STEPS + 1))


def test_nothing_is_sent_twice(mirrored_branch):
    store, folder, done = mirrored_branch["store"], mirrored_branch["folder"], mirrored_branch["done"]
    for again in (
        mirror.mirror_branch(store, done["retrain"].model_id, "offline", folder, project="of-the-test"),
        mirror.sync(store, "offline", folder),
    ):
        assert again.sent == {} and again.waiting == [] and again.problem is None
    assert run_files(folder) == mirrored_branch["files"]
    found = mirror.status(store, "offline", folder)
    assert (found.num_sent, found.num_waiting, found.problem) == (5, 0, None)


def test_verify_finds_what_was_changed_and_nothing_else(mirrored_branch, tmp_path):
    store, folder, done = mirrored_branch["store"], mirrored_branch["folder"], mirrored_branch["done"]
    assert verify_target(store, "offline", folder).problems == []
    assert verify_target(store, "offline", folder).num_runs == 5
    for operation, run in mirrored_branch["runs"].items():
        assert compare_run(mirror_runs.read_run(store, done[operation].id), run) == []
    record, held = mirror_runs.read_run(store, done["retrain"].id), mirrored_branch["runs"]["retrain"]
    altered = copy.deepcopy(held)
    altered.history[41]["loss"] *= 1 + 1e-15
    altered.history.append(altered.history[7])
    del altered.summary["model/sparsity"]
    altered.artifacts = [artifact for artifact in altered.artifacts if not artifact.uses]
    altered.config["parent_ids"] = []
    said = "\n".join(compare_run(record, altered))
    for part in ("loss at step 42", "step 8 is there 2 times", "model/sparsity is None", "is there 0 times", "the parents' ids"):
        assert part in said, said
    assert len(said.splitlines()) == 5
    assert "missing" in compare_run(record, None)[0]
    copied = tmp_path / "mirror"
    shutil.copytree(folder, copied, symlinks=True)
    with open_copy(store, tmp_path / "home") as other:
        for job, row in mirrored(store, mirrored_branch["report"].target).items():
            set_mirrored(other, f"wandb-offline:{copied}", job, row.remote, row.progress)
        (path,) = [path for path in run_files(copied) if done["retrain"].id in path.name]
        path.write_bytes(path.read_bytes()[:70_000])
        (problem,) = verify_target(other, "offline", copied).problems
        assert done["retrain"].id in problem and "cut short" in problem or "within a record" in problem


@contextmanager
def open_copy(store: Store, home: Path) -> Iterator[Store]:
    """The same store in another folder."""
    shutil.copytree(store.root, home)
    with closing(open_store(home)) as opened:
        yield opened


def test_no_key_is_written_into_an_offline_folder(mirrored_branch):
    key = KEY.encode()
    for path in mirrored_branch["folder"].rglob("*"):
        assert not path.is_file() or key not in path.read_bytes(), path


def test_offline_files_lie_in_their_folder_only(mirrored_branch):
    home = mirrored_branch["store"].root
    assert {path.name for path in home.iterdir()} - {"offshoot.sqlite-wal", "offshoot.sqlite-shm"} == {
        "offshoot.sqlite", "schema.lock", "mirror.lock", "blobs",
    }  # fmt: skip


# Order, names, catching up ------------------------------------------------------------------------------------------------


def test_parents_go_before_children_whatever_the_clock_says(store):
    done = build_branch(store)
    with store.write() as session:
        session.connection().exec_driver_sql("UPDATE job SET ended='2001-01-01' WHERE id=?", (done["evaluate"].id,))
    order = mirror.replay.finished(store)
    assert set(order) == {job.id for job in done.values()}
    for before, after in (("import", "prune"), ("prune", "retrain"), ("retrain", "evaluate"), ("retrain", "benchmark")):
        assert order.index(done[before].id) < order.index(done[after].id)


def test_a_branch_leaves_its_sisters_out(store):
    done = build_branch(store)
    job = start(store, PruneSpec(rate=0.3), done["import"].model_id)
    sister = jobs.complete(
        store, job, model=new_model(store, "sister", PruneSpec(rate=0.3), "pruned", (done["import"].model_id,))
    )
    report = mirror.mirror_branch(store, sister.model_id, "off")
    assert report.waiting == [done["import"].id, job.id]


def test_the_name_tells_the_nearest_pruning(store):
    done = build_branch(store)
    spec = PruneSpec(method="global_magnitude", rate=None, threshold=0.01)
    job = start(store, spec, done["retrain"].model_id)
    parents = (done["retrain"].model_id,)
    job = jobs.complete(store, job, model=new_model(store, "again", spec, "pruned", parents, facts={"sparsity": 0.6667}))
    assert mirror_runs.run_name(store, job).startswith("dcae_globalmagnitude_0.67_"), "a threshold asks for no ratio"


def test_deleted_weights_leave_the_ids_and_a_note(store, tmp_path):
    done = build_branch(store)
    pruned = get_model(store, done["prune"].model_id)
    store.blobs.remove(pruned.blob_digest)
    report = mirror.sync(store, "offline", tmp_path / "mirror")
    assert report.problem is None and len(report.sent) == 5
    (note,) = [note for note in report.notes if "are not in the store any more" in note]
    assert pruned.id in note
    (run,) = [run for run in map(read_run, run_files(tmp_path / "mirror")) if run.id == done["retrain"].id]
    assert run.config["parent_ids"] == [pruned.id]
    assert [artifact.uses for artifact in run.artifacts if artifact.type == "model"] == [False]


# Modes, and a mirror that is broken ---------------------------------------------------------------------------------------


def one_job(store: Store) -> str:
    job = start(store, ImportSpec())
    jobs.complete(store, job, model=new_model(store, "base", ImportSpec(), "baseline"))
    return job.id


def test_off_and_auto_without_a_key_write_nothing(store, tmp_path):
    job_id = one_job(store)
    for mode in ("off", "auto"):
        report = mirror.sync(store, mode, tmp_path / "mirror")
        assert report.sent == {} and report.waiting == [job_id] and report.problem is None
        assert "Waiting: 1 run." in report.message
    assert not (tmp_path / "mirror").exists()
    assert mirrored(store, report.target) == {}


def test_a_choice_is_kept_for_the_store(tmp_path):
    for wanted in ("off", "auto"):
        manager = ModelManager(settings=Settings(home=tmp_path / "home"))
        assert manager.set_mirror(wanted, "pacman").mode == wanted
        manager.store.close()
        again = ModelManager(settings=Settings(home=tmp_path / "home"))
        assert (again.mirror_settings().mirror, again.mirror_settings().wandb_project) == (wanted, "pacman")
        with pytest.raises(CoreError, match="no mode"):
            again.set_mirror("sideways")
        again.store.close()


@pytest.mark.parametrize("found", ["environment", "netrc"])
def test_auto_is_online_where_a_key_is_found(store, tmp_path, monkeypatch, found):
    assert modes.resolve_target(store, "auto").sends is None
    if found == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
        (tmp_path / "no-netrc").chmod(0o600)
    assert modes.resolve_target(store, "auto").sends == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert modes.resolve_target(store, "auto").name.startswith("wandb-online:127.0.0.1:9/")


def test_a_mode_that_is_none(store, tmp_path):
    one_job(store)
    with pytest.raises(CoreError, match="no mode") as caught:
        mirror.sync(store, "sideways", tmp_path / "mirror")
    assert (caught.value.code, caught.value.legal) == ("mirror_mode", ["auto", "off", "offline", "online"])


def test_online_without_a_key(store):
    one_job(store)
    with pytest.raises(CoreError, match="no W&B key") as caught:
        mirror.sync(store, "online")
    assert caught.value.code == "no_key"
    found = mirror.status(store, "online")
    assert found.num_waiting == 1 and found.problem is not None and found.problem["code"] == "no_key"


def test_a_folder_that_cannot_be_written(store, tmp_path):
    one_job(store)
    before = content(store)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CoreError, match="cannot write") as caught:
        mirror.sync(store, "offline", tmp_path / "file" / "mirror")
    assert caught.value.code == "mirror_folder" and caught.value.next
    assert content(store) == before and verify(store) == []
    assert mirror.status(store, "offline", tmp_path / "file" / "mirror").num_waiting == 1


def test_a_run_that_takes_too_long_is_ended_and_sent_later(store, tmp_path):
    job_id, folder = one_job(store), tmp_path / "mirror"
    before = content(store)
    report = mirror.sync(store, "offline", folder, run_limit_s=0.05)
    assert report.problem is not None and report.problem["code"] == "mirror_timeout"
    assert report.sent == {} and report.waiting == [job_id] and content(store) == before
    assert mirror.status(store, "offline", folder).problem == report.problem
    assert not any(map(is_mirror, psutil.Process().children(recursive=True))), "the sender is gone"
    left = folder / "wandb" / f"offline-run-20260101_000000-{job_id}"  # what a mirror killed a little later leaves
    left.mkdir(parents=True)
    (left / f"run-{job_id}.wandb").write_bytes(b":W&B half")
    assert list(mirror.sync(store, "offline", folder).sent) == [job_id]
    (path,) = run_files(folder)
    assert path.parent != left and read_run(path).id == job_id


def test_a_sender_that_dies_says_so(store, tmp_path, monkeypatch):
    job_id = one_job(store)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "wandb.py").write_text("raise SystemExit('wandb is broken here')\n")
    monkeypatch.setattr("core.mirror.process.ROOT", f"{broken}{os.pathsep}{Path(__file__).resolve().parents[2]}")
    report = mirror.sync(store, "offline", tmp_path / "mirror")
    assert report.problem is not None and "wandb is broken here" in report.problem["message"]
    assert report.waiting == [job_id]


def test_a_failed_run_holds_back_its_descendants_only(store, tmp_path):
    done = build_branch(store)
    other = one_job(store)
    with store.write() as session:  # what cannot be replayed: a point that is no packed row of its names
        session.connection().exec_driver_sql("UPDATE metric SET packed=x'00' WHERE job=? AND step=5", (done["retrain"].id,))
    report = mirror.sync(store, "offline", tmp_path / "mirror")
    assert set(report.sent) == {done["import"].id, done["prune"].id, other}
    assert report.waiting == [done["retrain"].id, done["evaluate"].id, done["benchmark"].id]
    assert report.problem is not None and report.problem["given"] == done["retrain"].id


def test_no_server_to_be_reached(store, tmp_path, monkeypatch):
    job_id, other = one_job(store), one_job(store)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    report = mirror.sync(store, "online", tmp_path / "mirror", run_limit_s=24)
    assert report.problem is not None and report.problem["code"] == "mirror_unreachable"
    assert "connection refused" in report.problem["message"] and "\n" not in report.problem["message"]
    assert KEY not in (tmp_path / "mirror" / "mirror.log").read_text()
    assert report.sent == {} and report.waiting == [job_id, other] and verify(store) == []
    assert len(mirrored(store, report.target)) == 1, "the second run was not even tried"
    deadline = time.monotonic() + 20
    while services := [path for path in map(service_folder, psutil.process_iter()) if path.startswith(str(tmp_path))]:
        assert time.monotonic() < deadline, f"left behind: {services}"
        time.sleep(0.1)


def is_mirror(process: psutil.Process) -> bool:
    """Whether a process sends runs; one that ended meanwhile does not."""
    try:
        return "core.mirror" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def service_folder(process: psutil.Process) -> str:
    """The mirror's folder of a wandb service; empty for any other process."""
    try:
        return process.environ().get("WANDB_DIR", "") if "wandb" in process.name() else ""
    except psutil.Error:
        return ""


def test_one_mirror_at_a_time(store, tmp_path):
    one_job(store)
    with mirror.replay.only_one(store), pytest.raises(CoreError, match="at work already") as caught:
        mirror.sync(store, "offline", tmp_path / "mirror")
    assert caught.value.code == "mirror_busy"
    assert not (tmp_path / "mirror" / "wandb").exists()


# Processes ----------------------------------------------------------------------------------------------------------------


def test_the_service_never_imports_wandb():
    code = "import sys, core.mirror, core.terminal.mirror; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_the_terminal_verbs(store, tmp_path, capsys):
    import typer

    from core.terminal import app as terminal
    from core.terminal import mirror as verbs

    job_id = one_job(store)
    if "mirror" not in {group.name for group in terminal.app.registered_groups}:
        terminal.app.add_typer(verbs.app, name="mirror")
    assert isinstance(verbs.app, typer.Typer)
    folder = str(tmp_path / "mirror")

    def told(*arguments: str) -> dict[str, Any]:
        try:
            terminal.main(["--store", str(store.root), "--json", "mirror", *arguments])
        except SystemExit as end:
            assert end.code in (0, 1, 2)
        return json.loads(capsys.readouterr().out)

    assert told("status", "--mode", "offline", "--folder", folder)["data"]["num_waiting"] == 1
    assert list(told("sync", "base", "--mode", "offline", "--folder", folder)["data"]["sent"]) == [job_id]
    assert told("sync", "--mode", "offline", "--folder", folder)["data"]["sent"] == {}
    assert told("verify", "--mode", "offline", "--folder", folder)["data"] == {
        "target": f"wandb-offline:{folder}", "num_runs": 1, "num_waiting": 0, "problems": [],
    }  # fmt: skip
    assert told("verify")["error"]["code"] == "mirror_nowhere"
    assert told("sync", "--mode", "sideways")["error"]["code"] == "mirror_mode"
    assert told("set", "off", "--project", "shared")["data"]["line"] == "The W&B mirror is off."
    assert told("status")["data"]["mode"] == "off"
    assert told("set", "sideways")["error"]["code"] == "mirror_mode"


# The witness --------------------------------------------------------------------------------------------------------------


def test_the_parser_refuses_a_file_cut_short(mirrored_branch):
    data = max((path.read_bytes() for path in mirrored_branch["files"]), key=len)
    assert len(data) > 3 * 32 * 1024
    assert len(list(payloads(data))) > NUM_STEPS
    with pytest.raises(CoreError, match="cut short"):
        list(payloads(data[: len(data) // 2]))
    with pytest.raises(CoreError, match="begins with"):
        list(payloads(b"not wandb"))
