"""A retraining in two processes under torchrun: the model that one process makes, made from the same spec."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import store as st
import store.jobs as jobs
from core import machine
from core.errors import CoreError
from core.model_manager import ModelManager
from core.operations.models import load
from core.operations.ranks import Aside, rank_device
from core.operations.training_images import shared_images
from core.specs import RetrainSpec
from core.terminal.app import app
from dcaecore import DataError, World

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


def test_a_second_machine_trains_along_and_opens_no_store(bench, tmp_path):
    """Both are this one; what the second is told is its command, and what it has is the images."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    parent = bench.add()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = bench.run("retrain", parent.id, **{**FIELDS, "n_epochs": 1})
    torch.set_num_threads(threads)
    bench.submit("retrain", parent.id, **{**FIELDS, "n_epochs": 1}, processes=2, machines=2)
    job = jobs.claim(bench.store, "cpu", "test")
    settings = bench.settings.model_copy(update={"rendezvous": place})
    other = {
        **os.environ, "OMP_NUM_THREADS": "1", "OFFSHOOT_HOME": str(tmp_path / "other"), "OFFSHOOT_DEVICE": "cpu",
        "OFFSHOOT_DATA_DIR": str(bench.settings.data_folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "core", "assist", place, "--processes", "2", "--machines", "2", "--machine", "1"]
    with subprocess.Popen(command, cwd=ROOT, env=other, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as helper:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, settings.model_dump_json(), job.id], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        said = helper.communicate(timeout=60)[0]
    row = jobs.get_job(bench.store, job.id)
    assert done.returncode == 0 and row.state == "done" and helper.returncode == 0, (done.stderr[-3000:], row.error, said)
    assert row.result["processes"] == 2 and not (tmp_path / "other").exists()
    one, two = (load(bench.store, str(ref)) for ref in (alone.model_id, row.model_id))
    state = two.model.state_dict()
    assert max(float((value - state[name]).abs().max()) for name, value in one.model.state_dict().items()) < 1e-5


def test_machines_need_a_place_to_meet_and_alike_shares(bench):
    service = ModelManager(settings=bench.settings)
    parent = bench.add()
    before = len(service.jobs(limit=500))
    with pytest.raises(CoreError, match="need a place to meet") as caught:
        service.retrain_model(parent.id, {**FIELDS, "processes": 2, "machines": 2})
    assert "OFFSHOOT_RENDEZVOUS" in caught.value.next and len(service.jobs(limit=500)) == before
    with pytest.raises(CoreError, match="machines must divide processes 4, and 3 does not"):
        service.retrain_model(parent.id, {**FIELDS, "processes": 4, "machines": 3})
    service.store.close()
    for wrong in ("train1", "train1:", ":29500", "train1:0", "train1:99999", "train1:x"):
        with pytest.raises(CoreError, match="need a place to meet"):
            machine.meeting_place(wrong)
    assert machine.meeting_place("[::1]:29500") == ("::1", 29500)
    told = CliRunner().invoke(app, ["assist", "train1:29500", "--processes", "3"])
    assert isinstance(told.exception, CoreError) and "no share of 3 processes" in told.exception.message


def test_ranks_that_read_other_images_are_refused(bench):
    class Two(World):
        def union(self, names):
            return names | {"what the other rank has seen"}

        def together(self, call):
            return call()

    spec = RetrainSpec.model_validate({**FIELDS, "processes": 2})
    with pytest.raises(DataError, match="do not read the same images"):
        shared_images(spec, Aside(bench.settings), Two(0, 2))


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

    monkeypatch.setattr(machine, "devices", lambda: [Device(f"cuda:{i}", "GPU", 0, 1, 0.0) for i in range(3)])
    machine.check_processes(RetrainSpec(batch_size=4, processes=2), "cuda:1")
    with pytest.raises(CoreError, match="there are 1 GPUs from cuda:2 on"):
        machine.check_processes(RetrainSpec(batch_size=4, processes=2), "cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_device("cuda:1") == "cuda:2" and rank_device("cpu") == "cpu"
