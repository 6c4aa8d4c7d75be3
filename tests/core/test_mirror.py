"""The mirror: what W&B's own offline files say is what the store says, point for point; broken, it costs the store nothing."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import store.jobs as jobs
from core import mirror
from core.errors import CoreError
from core.mirror import runs as mirror_runs
from core.mirror.verifying import compare_run, verify_target
from core.mirror.wandb_file import payloads, read_run, run_files
from core.specs import RetrainSpec
from store import (
    Store,
    get_model,
    metrics,
    mirrored,
    open_store,
    set_mirrored,
    verify,
)
from tests.core.mirror_branch import (
    KEY,
    NUM_STEPS,
    PROTOCOL,
    build_branch,
    content,
    curve,
    no_key,
    png,
    same,
    store,
)

__all__ = ["no_key", "store"]


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
        subject = done[operation].model_id or done[operation].parent_model_id
        assert f"core jobs {done[operation].id}`" in run.notes and f"core show {subject}`" in run.notes, "the way back"


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
        whole = path.read_bytes()
        for size in cuts(whole):
            path.write_bytes(whole[:size])
            (problem,) = verify_target(other, "offline", copied).problems
            assert done["retrain"].id in problem and "cut short" in problem, (size, problem)


def cuts(data: bytes) -> list[int]:
    """Sizes of the same file cut short: between two records, within a chunk's head, within what follows it."""
    at = 7
    while at < 40:
        at += 7 + int.from_bytes(data[at + 4 : at + 6], "little")
    assert at < 32 * 1024 - 64, "a head of the first block"
    return [at, at + 3, at + 9]


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


# The witness --------------------------------------------------------------------------------------------------------------


def test_the_parser_refuses_a_file_cut_short(mirrored_branch):
    data = max((path.read_bytes() for path in mirrored_branch["files"]), key=len)
    assert len(data) > 3 * 32 * 1024
    assert len(list(payloads(data))) > NUM_STEPS
    between, *others = cuts(data)
    assert len(list(payloads(data[:between]))) > 0, "such a file lacks the run's end alone"
    for size in (*others, *range(8, 14)):
        with pytest.raises(CoreError, match="cut short"):
            list(payloads(data[:size]))
    with pytest.raises(CoreError, match="within a record"):
        list(payloads(data[:7] + b"crc." + (3).to_bytes(2, "little") + b"\x02abc"))
    with pytest.raises(CoreError, match="begins with"):
        list(payloads(b"not wandb"))
