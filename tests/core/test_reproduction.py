"""Models made again: bit-identical by their record, the measured difference where they are not, scripts that yield the same ids."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import store as st
from core.errors import CoreError
from core.model_manager import ModelManager
from core.operations.context import Context
from core.reproduction import chain_of, reproduction_lines
from core.specs import RetrainSpec
from tests.core.in_process import InProcess

ROOT = Path(__file__).resolve().parents[2]
RETRAIN = {
    "image_size": 32, "batch_size": 2, "n_epochs": 2, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-3, "val_steps": 4,
    "num_workers": 0, "num_save_images": 0,
}  # fmt: skip
EVALUATE = {"image_size": 32, "num_images": 4, "num_save_images": 0}


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    from core.settings import Settings

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("reproduce") / "home"
    made = InProcess(Settings(home=home, data_dir=data_dir, device="cpu", num_threads=1, pause_release_s=0))
    yield made
    made.store.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chain(bench):
    """tiny -> pruned -> retrained from a teacher that an alias names -> pruned again, with a figure."""
    tiny = bench.run("import", source="tiny", random_seed=0).model_id
    st.set_alias(bench.store, "dense", tiny)
    pruned = bench.run("prune", tiny, rate=0.3).model_id
    taught = bench.run("retrain", pruned, **RETRAIN, teacher="dense", distill_output_weight=1.0).model_id
    sparse = bench.run("prune", taught, method="global_magnitude", rate=None, threshold=0.01).model_id
    bench.run("evaluate", sparse, **EVALUATE)
    return [tiny, pruned, taught, sparse]


def test_a_chain_made_again_has_the_same_bits(bench, chain):
    before = [row.id for row in st.list_models(bench.store)]
    job = bench.run("reproduce", chain[-1])
    assert job.result["identical"] is True and job.result["figures"] == {} and job.model_id is None
    assert [step["model"] for step in job.result["steps"]] == chain == [step["made"] for step in job.result["steps"]]
    assert [step["operation"] for step in job.result["steps"]] == ["record", "prune", "retrain", "prune"]
    assert "bit-identical (cpu, 1 thread)" in reproduction_lines(job.result)[2]
    assert [row.id for row in st.list_models(bench.store)] == before and st.verify(bench.store) == []
    assert not (bench.store.job_folder(job.id) / "scratch").exists()


def test_what_differs_is_measured(bench, chain):
    """Another seed on record stands for another machine: the rerun cannot make the same bits, and says how far it is."""
    other = bench.run("retrain", chain[1], **RETRAIN, seed=1).model_id
    bench.run("evaluate", other, **EVALUATE)
    with bench.store.write() as session:
        session.connection().exec_driver_sql("UPDATE job SET spec=json_set(spec, '$.seed', 2) WHERE model_id=?", (other,))
    job = bench.run("reproduce", other)
    step = job.result["steps"][-1]
    assert job.result["identical"] is False and step["made"] != other
    assert 0 < step["relative_difference"] < 1 and step["max_abs_difference"] > 0
    pair = job.result["figures"]["psnr_db"]
    assert pair["record"] == st.scores.scores(bench.store, other)["psnr_db"] != pair["again"]
    lines = reproduction_lines(job.result)
    assert any("differs by" in line for line in lines) and any(line.startswith("psnr_db") for line in lines)


class Dies(Context):
    steps = 0

    def poll(self):
        Dies.steps += 1
        if Dies.steps == 8:
            raise SystemError("killed")
        return super().poll()


def test_a_killed_rerun_goes_on_where_it_was(bench, chain):
    import store.jobs as jobs

    job = bench.submit("reproduce", chain[-1])
    with pytest.raises(SystemError):
        bench.perform(bench.claim(), Dies)
    scratch = bench.store.job_folder(job.id) / "scratch"
    assert scratch.exists()
    jobs.resume(bench.store, job.id)
    done = bench.perform(bench.claim())
    assert done.result["identical"] is True and not scratch.exists()
    assert sum("pruned" in line["message"] or "units kept" in line["message"] for line in bench.log(done)) > 0


def test_a_deleted_ancestor_is_made_anew_and_a_lost_baseline_imported_again(bench, chain):
    baseline, middle = st.get_model(bench.store, chain[0]), st.get_model(bench.store, chain[1])
    hidden = [bench.store.blobs.path(row.blob_digest) for row in (baseline, middle)]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    job = bench.run("reproduce", chain[2])
    for path in hidden:
        path.with_suffix(".hidden").rename(path)
    assert job.result["identical"] is True
    assert [step["operation"] for step in job.result["steps"]] == ["import", "prune", "retrain"]


class AsksForCheckpoints(Context):
    """Every poll of the training asks for a checkpoint."""

    def poll(self, steps_done: int | None = None):
        asked = super().poll(steps_done)
        return "checkpoint" if asked == "run" and steps_done else asked


@pytest.mark.parametrize(("step", "weights"), [(3, "trained"), (1, "trained"), (3, "best")])
def test_a_model_of_a_checkpoint_is_made_again_by_training_up_to_it(bench, chain, step, weights):
    spec = RetrainSpec.model_validate({**RETRAIN, "ema_decay": 0.5, "seed": 3, "init_lr": 2e-3})
    known = [job for job in st.jobs.list_jobs(bench.store, ("done",), None) if job.spec == spec.model_dump(mode="json")]
    if not known:
        bench.submit("retrain", chain[1], **spec.model_dump(mode="json"))
        known = [bench.perform(bench.claim(), AsksForCheckpoints)]
    training = known[0]
    made = bench.run("branch", chain[1], job=training.id, step=step, weights=weights, training=spec.identity_spec()).model_id
    job = bench.run("reproduce", made)
    assert job.result["identical"] is True and [told["made"] for told in job.result["steps"]] == [*chain[:2], made]
    last = job.result["steps"][-1]
    assert last["operation"] == "branch" and last["recorded_threads"] == 1
    if step == 1:
        log = " ".join(line["message"] for line in bench.log(job))
        assert "Checkpoint at step 1 (cancel)" in log, "it does not train on beyond what it needs"


def test_a_chain_is_told_parents_first(bench, chain):
    assert [row.id for row in chain_of(bench.store, chain[-1])] == chain


def test_a_model_without_an_operation_is_refused_before_any_job(bench, monkeypatch):
    from tests.store.builders import new_model

    made = st.add_model(bench.store, new_model(bench.store, "foreign", spec={"operation": "witchcraft"}))
    manager = ModelManager(settings=bench.settings)
    count = len(manager.jobs())
    for call in (manager.reproduce_model, manager.script):
        with pytest.raises(CoreError, match="no recorded operation"):
            call(made.id)
    with pytest.raises(CoreError, match="no script of kind"):
        manager.script(made.id, "basic")
    assert len(manager.jobs()) == count
    manager.store.close()


@pytest.fixture(scope="module")
def every_step(bench, chain):
    """tiny -> pruned -> a model of a checkpoint in the middle of a training that has a teacher -> trained on -> pruned by a threshold."""
    spec = RetrainSpec.model_validate({**RETRAIN, "seed": 5, "teacher": "dense", "distill_output_weight": 1.0})
    bench.submit("retrain", chain[1], **spec.model_dump(mode="json"))
    training = bench.perform(bench.claim(), AsksForCheckpoints)
    made = bench.run("branch", chain[1], job=training.id, step=3, weights="trained", training=spec.identity_spec()).model_id
    longer = bench.run("retrain", made, **{**RETRAIN, "n_epochs": 1}).model_id
    return [*chain[:2], made, longer, bench.run("prune", longer, method="global_magnitude", rate=None, threshold=0.01).model_id]


@pytest.mark.parametrize("kind", ["python", "terminal"])
def test_a_script_makes_the_same_id_on_an_empty_store(bench, every_step, tmp_path, kind):
    from tests.conftest import stop_workers

    manager = ModelManager(settings=bench.settings)
    text = manager.script(every_step[-1], kind)
    manager.store.close()
    assert len(text.splitlines()) < 90
    path, home = tmp_path / "make", tmp_path / "empty"
    path.write_text(text)
    env = {
        **os.environ, "OFFSHOOT_DATA_DIR": str(bench.settings.data_folder), "OFFSHOOT_WORKER_IDLE_S": "20",
        "PYTHONPATH": str(ROOT), "PYTHON": sys.executable,
    }  # fmt: skip
    command = [sys.executable, str(path), str(home)] if kind == "python" else ["sh", str(path), str(home)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    finally:
        stop_workers(home)
    assert done.returncode == 0, done.stdout + done.stderr
    with_same_ids = st.open_store(home, read_only=True)
    assert {row.id for row in st.list_models(with_same_ids)} == set(every_step)
    with_same_ids.close()
