"""A retraining in two processes under torchrun: the model that one process makes, made from the same spec."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import store as st
import store.jobs as jobs
from core import machine
from core.errors import CoreError
from core.model_manager import ModelManager
from core.operations.models import load
from core.operations.ranks import rank_device

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {
    "image_size": 32, "batch_size": 4, "n_epochs": 4, "steps_per_epoch": 5, "warmup_epochs": 1, "init_lr": 1e-3, "val_steps": 4,
    "num_workers": 1, "num_save_images": 1, "eval_interval": 2, "foreground_weight": 5.0, "keep": "last",
}  # fmt: skip
CHILD = "import sys; from core.jobs.ranks import become_torchrun; become_torchrun(*sys.argv[1:]); print('one process')"


def test_torchrun_reaches_the_weights_of_one_process_and_only_rank_0_writes(bench):
    parent = bench.add()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = bench.run("retrain", parent.id, **FIELDS)
    torch.set_num_threads(threads)
    bench.submit("retrain", parent.id, **FIELDS, processes=2)
    job = jobs.claim(bench.store, "cpu", "test")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, bench.settings.model_dump_json(), job.id], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    row = jobs.get_job(bench.store, job.id)
    assert done.returncode == 0 and row.state == "done", (done.stderr[-3000:], row.error)
    assert row.result["processes"] == 2 and row.result["steps"] == 20 and row.attempt == job.attempt
    one, two = (load(bench.store, str(ref)) for ref in (alone.model_id, row.model_id))
    state = two.model.state_dict()
    assert max(float((value - state[name]).abs().max()) for name, value in one.model.state_dict().items()) < 1e-5
    assert one.row.spec == two.row.spec and one.row.dataset == two.row.dataset
    for key in ("loss", "val_psnr_db"):
        steps, values = st.metrics.series(bench.store, row.id, key)
        assert list(steps) == list(st.metrics.series(bench.store, alone.id, key)[0])
        assert list(values) == pytest.approx(list(st.metrics.series(bench.store, alone.id, key)[1]), rel=1e-3)


def test_a_job_of_one_process_stays_what_it_is(bench):
    job = bench.submit("retrain", bench.add().id, **FIELDS)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, bench.settings.model_dump_json(), job.id], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "one process", done.stderr
    jobs.request(bench.store, job.id, "cancel")


def test_what_cannot_be_had_is_refused_before_anything_is_submitted(bench, monkeypatch):
    parent = bench.add()
    service = ModelManager(settings=bench.settings)
    before = len(service.jobs(limit=500))
    with pytest.raises(CoreError, match="processes must divide batch_size 4 in 2 parts") as caught:
        service.retrain_model(parent.id, {**FIELDS, "accumulation_steps": 2, "processes": 4})
    assert caught.value.code == "bad_spec"
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda: 2)
    with pytest.raises(CoreError, match="4 processes need a device each, and there are 2 cores") as caught:
        service.retrain_model(parent.id, {**FIELDS, "processes": 4})
    assert caught.value.legal == "1 to 2" and len(service.jobs(limit=500)) == before
    with pytest.raises(CoreError, match="2 processes are asked for, and there are 1"):
        bench.run("retrain", parent.id, **FIELDS, processes=2)
    service.store.close()


def test_each_rank_has_the_gpu_at_its_place(monkeypatch):
    from core.devices import Device
    from core.specs import RetrainSpec

    monkeypatch.setattr(machine, "devices", lambda: [Device(f"cuda:{i}", "GPU", 0, 1, 0.0) for i in range(3)])
    machine.check_processes(RetrainSpec(batch_size=4, processes=2), "cuda:1")
    with pytest.raises(CoreError, match="there are 1 GPUs from cuda:2 on"):
        machine.check_processes(RetrainSpec(batch_size=4, processes=2), "cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_device("cuda:1") == "cuda:2" and rank_device("cpu") == "cpu"
