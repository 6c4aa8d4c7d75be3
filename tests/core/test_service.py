"""The service with real workers: the verbs, kill -9, pause and resume, cancel, bad input."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

import store as st
from core.errors import CoreError
from core.model_manager import ModelManager
from store import StoreError

LONG = {
    "image_size": 32,
    "batch_size": 1,
    "n_epochs": 60,
    "steps_per_epoch": 20,
    "warmup_epochs": 0,
    "val_steps": 4,
    "num_workers": 0,
}
SHORT = {**LONG, "n_epochs": 1, "steps_per_epoch": 3}


def until(condition, timeout_s=40.0):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def tiny(manager):
    return manager.initialize_model("tiny", random_seed=0, name="tiny")


def test_the_chain_end_to_end(manager, tiny):
    assert manager.current().id == tiny.id
    evaluate, benchmark = {"image_size": 32, "num_images": 16}, {"image_size": 32, "repeats": 3, "starts": 1}
    jobs = manager.compress(tiny.id, "light", prune={"rate": 0.5}, retrain=SHORT, evaluate=evaluate, benchmark=benchmark)
    assert [job.operation for job in jobs] == ["evaluate", "prune", "retrain", "evaluate", "benchmark"]
    done = [manager.wait(job.id, 60) for job in jobs]
    made = manager.get_model(done[2].model_id)
    pruned = manager.get_model(done[1].model_id)
    assert pruned.parent_id == tiny.id and made.parent_id == pruned.id
    assert pruned.name.startswith("dcae_l2structured_0.50_")
    assert made.layout == pruned.layout and made.facts["parameters"] == pruned.facts["parameters"] < tiny.facts["parameters"]
    assert manager.predict_pruning(tiny.id, {"rate": 0.5}).parameters == made.facts["parameters"]
    comparison = manager.compare([tiny.id, made.id])
    figures = comparison.figures[made.id]
    assert figures["decode_ms"].value > 0 and figures["psnr_db"].against_baseline is not None
    assert figures["start_ms"].value > 0 and figures["peak_resident_bytes"].value > 0, "a job's process can start others"
    assert figures["parameters"].better(figures["parameters"].against_baseline) is True
    assert comparison.measurement["threads"] == 1 and comparison.protocol["num_images"] == 16
    assert len(manager.pictures(made.id)) == 8 and len(manager.image_psnr(made.id)) == 16
    assert [row.id for row in manager.ancestry(made.id)] == [tiny.id, pruned.id, made.id]
    assert "retrain" in manager.spec_line(made.id) and "rate 0.5" in manager.spec_line(pruned.id)
    assert manager.verify() == []
    metrics = manager.get_model_metrics(made.id)
    assert all(value is None or isinstance(value, float | int) for value in metrics.values())
    edges, counts, zeros = manager.weight_histogram(made.id)
    assert sum(counts) > 0 and len(edges) == len(counts) + 1 and zeros == 0
    assert manager.predicted_seconds(tiny.id, "light") > 0
    again = manager.wait(manager.evaluate_model(made.id, evaluate).id, 60)
    assert st.scores.scores(manager.store, made.id)["psnr_db"] == pytest.approx(figures["psnr_db"].value, abs=1e-9)
    assert again.result["foreground_share"] > 0
    manager.promote(made.id)
    assert manager.current().id == made.id


def test_unstructured_pruning_survives_retraining_and_halves_twice(manager, tiny, tmp_path):
    from dcaecore import load_model

    half = manager.wait(manager.prune_model(tiny.id, {"method": "global_magnitude", "rate": 0.5}).id, 40)
    trained = manager.wait(manager.retrain_model(half.model_id, {**SHORT, "weight_decay": 0.5}).id, 40)
    quarter = manager.wait(manager.prune_model(trained.model_id, {"method": "l1_unstructured", "rate": 0.5}).id, 40)
    counts = []
    for ref in (half.model_id, trained.model_id, quarter.model_id):
        path = manager.save_to_file(ref, tmp_path / f"{ref}.safetensors")
        loaded = load_model(path)
        state = loaded.model.state_dict()
        assert all(bool((state[name][~mask] == 0).all()) for name, mask in loaded.masks.items())
        counts.append(sum(int(mask.sum()) for mask in loaded.masks.values()))
    assert counts[0] == counts[1] and counts[2] == pytest.approx(counts[0] / 2, abs=30)
    with pytest.raises(CoreError, match="there already"):
        manager.save_to_file(half.model_id, tmp_path / f"{half.model_id}.safetensors")


def test_a_killed_job_fails_soon_and_resumes_to_the_same_bits(manager, tiny):
    spec = {**LONG, "n_epochs": 8}
    whole = manager.wait(manager.retrain_model(tiny.id, spec).id, 90)
    expected = manager.get_model(whole.model_id)
    job = manager.retrain_model(tiny.id, {**spec, "log_interval": 7})
    until(lambda: len(manager.series(job.id, "loss")[0]) > 15)
    manager.control(job.id, "checkpoint")
    until(lambda: any("Checkpoint" in line["message"] for line in manager.log(job.id)))
    pid = manager.job(job.id).pid
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    row = until(lambda: (r := manager.job(job.id)).state == "failed" and r)
    assert time.monotonic() - killed < 20.0  # two seconds on an idle machine
    assert "SIGKILL" in row.error["message"]
    before = list(manager.series(job.id, "loss")[0])
    manager.control(job.id, "resume")
    done = manager.wait(job.id, 90)
    assert any("Going on from step" in line["message"] for line in manager.log(job.id))
    assert manager.get_model(done.model_id).weights_digest == expected.weights_digest
    assert done.model_id == expected.id
    assert list(manager.series(job.id, "loss")[0])[: len(before)] == before


def test_pause_releases_the_device_and_cancel_makes_nothing(manager, tiny):
    job = manager.retrain_model(tiny.id, LONG)
    until(lambda: len(manager.series(job.id, "loss")[0]) > 3)
    manager.control(job.id, "pause")
    until(lambda: manager.job(job.id).state == "paused")
    until(lambda: manager.job(job.id).pid is None)
    reached = len(manager.series(job.id, "loss")[0])
    manager.control(job.id, "resume")
    until(lambda: len(manager.series(job.id, "loss")[0]) > reached)
    manager.control(job.id, "cancel")
    until(lambda: manager.job(job.id).state == "cancelled")
    assert manager.job(job.id).model_id is None
    assert [row.id for row in manager.list_models()] == [tiny.id]
    with pytest.raises(CoreError, match="cancelled"):
        manager.wait(job.id)


def test_a_killed_worker_is_replaced_and_its_job_goes_on(manager, tiny):
    job = manager.retrain_model(tiny.id, LONG)
    until(lambda: len(manager.series(job.id, "loss")[0]) > 3)
    worker = st.jobs.get_worker(manager.store, "cpu")
    child = manager.job(job.id).pid
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not st.jobs.worker_alive(manager.store, "cpu"))
    manager.warm()
    row = until(lambda: (r := manager.job(job.id)).attempt == 2 and r.state == "running" and r)
    assert row.pid != child and not psutil.pid_exists(child)
    manager.control(job.id, "cancel")
    until(lambda: manager.job(job.id).state == "cancelled")


def test_a_warm_worker_starts_a_job_at_once(manager, tiny):
    job = manager.prune_model(tiny.id, {"rate": 0.2})
    done = manager.wait(job.id, 30)
    from datetime import datetime

    waited = datetime.fromisoformat(done.started) - datetime.fromisoformat(done.created)
    assert waited.total_seconds() < 2.0  # 0.3 s is the goal; a test on a busy machine allows more


def test_mistakes_are_told_before_anything_starts(manager, tiny, settings, tmp_path):
    cases = [
        (lambda: manager.prune_model("m_ffffffffffff", {}), "No model"),
        (lambda: manager.prune_model(tiny.id, {"rate": 0}), "rate: 0 cannot be"),
        (lambda: manager.prune_model(tiny.id, {"rate": 1}), "rate: 1 cannot be"),
        (lambda: manager.prune_model(tiny.id, {"rate": float("nan")}), "finite"),
        (lambda: manager.prune_model(tiny.id, {"speed": 1}), "Extra inputs"),
        (lambda: manager.prune_model(tiny.id, {"site_rates": {"middle": 0.5}}), "no site"),
        (lambda: manager.retrain_model(tiny.id, {"image_size": 33}), "33 x 33 px do not divide"),
        (lambda: manager.evaluate_model(tiny.id, {"image_size": 33}), "33 x 33 px do not divide"),
        (lambda: manager.prune_model(tiny.id, device="cuda:9"), "no device"),
        (lambda: manager.compress(tiny.id, "gigantic"), "no preset"),
        (lambda: manager.retrain_model(tiny.id, {"perceptual_weight": 1.0}), "perceptual loss is off"),
        (lambda: manager.initialize_model("no-such-thing"), "no model"),
    ]
    before = len(manager.jobs())
    for call, message in cases:
        with pytest.raises(Exception, match=message) as caught:
            call()
        assert hasattr(caught.value, "legal")
        assert "33 x 33" not in message or "Try 32" in caught.value.next
    assert len(manager.jobs()) == before + 1  # the import that failed
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    failed = manager.retrain_model(tiny.id, {**SHORT, "data": {"kind": "parquet", "location": str(tmp_path / "cut.parquet")}})
    with pytest.raises(CoreError, match="no readable parquet"):
        manager.wait(failed.id, 30)
    chain = manager.evaluate_model({"job": failed.id})
    with pytest.raises(CoreError, match="cannot start"):
        manager.wait(chain.id, 30)
    assert [row.id for row in manager.list_models()] == [tiny.id]


def test_two_workers_for_one_device_and_a_read_only_store(manager, settings, tmp_path):
    from core.jobs.worker import serve

    manager.warm()
    until(lambda: st.jobs.worker_alive(manager.store, "cpu"))
    with pytest.raises(StoreError, match="already serves"):
        serve(settings, "cpu")
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(StoreError):
        ModelManager(file)
