"""Retrainings that are steered: run some more steps, checkpoints and what is made of them, training on with other settings."""

from __future__ import annotations

import json

import pytest
import torch

import store as st
from core.errors import CoreError
from core.model_manager import ModelManager
from core.operations.context import Context
from core.operations.models import load
from core.specs import RetrainSpec
from core.training import cleaning_rule
from dcaecore import load_checkpoint
from tests.core.in_process import InProcess

FIELDS = {
    "image_size": 32, "batch_size": 2, "n_epochs": 4, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-3, "val_steps": 16,
    "num_workers": 0, "num_save_images": 1, "save_interval": 1, "ema_decay": 0.5,
}  # fmt: skip


@pytest.fixture
def bench(tmp_path, data_dir, monkeypatch):
    """Jobs run in this process: nobody starts a worker for them."""
    from core.settings import Settings

    monkeypatch.setattr(ModelManager, "_ensure_worker", lambda _self, _device: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = InProcess(Settings(home=tmp_path / "home", data_dir=data_dir, device="cpu", num_threads=1, pause_release_s=0))
    yield made
    made.store.close()
    torch.set_num_threads(threads)


@pytest.fixture
def service(bench):
    made = ModelManager(settings=bench.settings)
    yield made
    made.store.close()


def paused_at(bench, service, step, **fields):
    """A retraining that paused by itself after `step` steps and left the device."""
    parent = bench.add()
    job = bench.submit("retrain", parent.id, **{**FIELDS, **fields})
    service.run_more(job.id, step)
    row = bench.perform(bench.claim())
    assert row.state == "paused" and row.pid is None
    return row


def test_it_runs_the_steps_asked_for_then_pauses_and_goes_on_to_the_same_weights(bench, service):
    job = paused_at(bench, service, 3)
    steps = list(st.metrics.series(bench.store, job.id, "loss")[0])
    assert steps == [1, 2, 3] and service.steps_done(job.id) == 3
    assert job.message.startswith("step 3 of 8")  # told at the pause, however lately something was
    again = service.run_more(job.id, 2)
    assert (again.state, again.pause_step) == ("queued", 5)
    job = bench.perform(bench.claim())
    assert job.state == "paused" and list(st.metrics.series(bench.store, job.id, "loss")[0]) == [1, 2, 3, 4, 5]
    service.control(job.id, "resume")
    done = bench.perform(bench.claim())
    with pytest.raises(st.StoreError, match="is done: it cannot run on"):
        service.run_more(job.id, 1)
    assert done.state == "done" and done.model_id == bench.run("retrain", done.parent_model_id, **FIELDS).model_id


@pytest.mark.parametrize("steps", [0, -1, 8, 9])
def test_steps_that_would_not_end_in_a_pause_are_refused(bench, service, steps):
    job = bench.submit("retrain", bench.add().id, **FIELDS)
    with pytest.raises(CoreError, match="0 of 8 steps are done") as caught:
        service.run_more(job.id, steps)
    assert caught.value.legal == "1 to 7" and service.job(job.id).pause_step is None
    other = bench.submit("evaluate", job.parent_model_id, image_size=32)
    with pytest.raises(CoreError, match="no retraining"):
        service.run_more(other.id, 1)


class Asks(Context):
    """Asks for a checkpoint before the third step, through the store as a page does."""

    def progress(self, fraction, message="", eta_s=None, *, force=False):
        super().progress(fraction, message, eta_s, force=force)
        if message.startswith("step 2 "):
            st.jobs.request(self.store, self.job, "checkpoint")


def test_a_checkpoint_asked_for_stays_and_does_not_stop_the_pause(bench, service):
    job = bench.submit("retrain", bench.add().id, **{**FIELDS, "keep_every": 0})
    service.run_more(job.id, 7)
    job = bench.perform(bench.claim(), Asks)
    assert job.state == "paused"
    found = {c.step: c for c in service.checkpoints(job.id)}
    assert sorted(found) == [2, 6, 7] and found[2].kept == found[2].why == "asked for"
    assert found[7].why == "at a pause" and found[7].bytes > 10_000 and found[7].best_step == 6
    assert found[7].figures["psnr_db"] == pytest.approx(st.metrics.series(bench.store, job.id, "val_psnr_db")[1][-1])
    service.control(job.id, "resume")
    bench.perform(bench.claim())
    assert [c.step for c in service.checkpoints(job.id)] == [8, 7, 2]
    rows = st.checkpoints.list_checkpoints(bench.store, job.id)
    assert {row.step for row in rows if row.folder.is_dir()} == {2, 7, 8}


def test_every_nth_epoch_stays_by_the_rule_that_is_told(bench, service):
    job = bench.run("retrain", bench.add().id, **{**FIELDS, "keep_every": 2, "save_interval": 1, "n_epochs": 7})
    found = {c.step: c.kept for c in service.checkpoints(job.id)}
    assert sorted(found) == [4, 8, 12, 14]
    assert found[4] == found[8] == found[12] == "every so many epochs" and found[14] == "newest"
    spec = RetrainSpec.model_validate(job.spec)
    assert "one in every 2 epochs" in cleaning_rule(spec) and "epoch" not in cleaning_rule(RetrainSpec())


def test_a_checkpoint_becomes_a_model_beside_the_training(bench, service):
    job = paused_at(bench, service, 5)
    parent = job.parent_model_id
    last = service.branch(job.id)
    best = service.branch(job.id, "best")
    early = service.branch(job.id, 4, name="after-four")
    made = {}
    for asked in (last, best, early):
        row = bench.perform(bench.claim())
        assert row.id == asked.id and row.state == "done"
        made[asked.id] = load(bench.store, row.model_id)
    folder = bench.store.job_folder(job.id) / "checkpoints"
    five, four = load_checkpoint(folder / "step_00000005"), load_checkpoint(folder / "step_00000004")
    for asked, wanted in ((last, five.ema), (best, five.best), (early, four.ema)):
        found = made[asked.id]
        assert all(torch.equal(value, wanted[name]) for name, value in found.model.state_dict().items())
        assert list(found.row.parents) == [("parent", parent)] and found.row.dataset["location"] == "mspacman"
        assert found.row.spec["training"]["seed"] == 0 and "job" not in found.row.spec
    assert made[early.id].row.name == "after-four"
    assert "branch: step 4" in service.spec_line(made[early.id].row.id)
    assert service.job(job.id).state == "paused" and not service.verify()
    # It is kept for good, and it can be evaluated, compared and promoted like any other.
    assert {c.step: c.kept for c in service.checkpoints(job.id)} == {4: "a model was made of it", 5: "a model was made of it"}
    service.promote(made[best.id].row.id)
    service.evaluate_model(made[best.id].row.id, {"image_size": 32, "num_images": 16, "split": "validation"})
    bench.perform(bench.claim())
    measured = st.scores.scores(bench.store, made[best.id].row.id, split="validation")["psnr_db"]
    best_step = service.checkpoints(job.id)[0].best_step
    values = dict(zip(*st.metrics.series(bench.store, job.id, "val_psnr_db"), strict=True))
    assert measured == pytest.approx(values[best_step], abs=1e-3)
    service.control(job.id, "resume")
    assert bench.perform(bench.claim()).state == "done"


def test_a_training_up_to_a_step_ends_there_and_gives_the_model_of_that_step(bench, service):
    parent = bench.add()
    job = service.retrain_to(parent.id, FIELDS, 3, name="begun")
    assert job.pause_step == 3 and bench.perform(bench.claim()).state == "paused"
    with pytest.raises(CoreError, match="queued"):
        service.end_at_pause(service.retrain_to(parent.id, FIELDS, 2).id, timeout_s=0.01)
    ended = service.end_at_pause(job.id)
    assert ended.state == "cancelled" and [c.step for c in service.checkpoints(job.id)][:1] == [3]
    bench.perform(bench.claim())  # the second one, to its pause
    first = service.branch(job.id, 3)
    assert bench.perform(bench.claim()).id == first.id
    whole = service.retrain_to(parent.id, FIELDS, 8)
    assert whole.pause_step is None and bench.perform(bench.claim()).state == "done"
    assert service.end_at_pause(whole.id).model_id is not None, "its last step is its end"
    with pytest.raises(CoreError, match="8 steps") as caught:
        service.retrain_to(parent.id, FIELDS, 9)
    assert caught.value.legal == "0 to 8"


def test_what_cannot_be_branched_is_told(bench, service):
    job = bench.submit("retrain", bench.add().id, **FIELDS)
    with pytest.raises(CoreError, match="no checkpoint yet"):
        service.branch(job.id)
    service.run_more(job.id, 1)
    bench.perform(bench.claim())
    with pytest.raises(CoreError, match="not validated anything"):
        service.branch(job.id, "best")
    with pytest.raises(CoreError, match="no checkpoint at step 77") as caught:
        service.branch(job.id, "77")
    assert caught.value.legal == "best, last, 1"


def test_other_settings_make_a_new_child_and_leave_the_old_training(bench, service):
    job = paused_at(bench, service, 5)
    left = service.remaining(job.id)
    assert left.total_steps == 3 and left.warmup_epochs == 0
    assert service.hints(job.id) == []
    branch, onward = service.train_on(job.id, {"init_lr": 5e-4, "optimizer_name": "sgd"})
    assert onward.state == "blocked" and onward.spec["init_lr"] == 5e-4 and onward.spec["seed"] == 1
    assert RetrainSpec.model_validate(onward.spec).total_steps == 3
    first, second = bench.perform(bench.claim()), bench.perform(bench.claim())
    assert (first.id, second.id) == (branch.id, onward.id)
    line = [row.id for row in service.ancestry(second.model_id)]
    assert line == [job.parent_model_id, first.model_id, second.model_id]
    old = service.job(job.id)
    assert old.state == "paused" and old.spec == job.spec and service.steps_done(job.id) == 5
    with pytest.raises(CoreError, match="init_lr"):
        service.train_on(job.id, {"init_lr": -1})
    service.control(job.id, "resume")
    with pytest.raises(CoreError, match="queued"):
        service.train_on(job.id)
    assert len(service.jobs()) == 3


def test_other_images_since_the_pause_stop_the_training(bench, service):
    job = paused_at(bench, service, 3)
    path = bench.store.job_folder(job.id) / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows_sha256": "0" * 64}))
    service.control(job.id, "resume")
    with pytest.raises(CoreError, match="rows_sha256 changed") as caught:
        bench.perform(bench.claim())
    assert caught.value.code == "data_changed" and service.checkpoints(job.id)[0].step == 3
