"""Retrain: masks and layout of the parent are kept, curves and pictures are written, a dead attempt goes on where it was."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import store as st
from core.operations.context import Context
from core.operations.models import load
from core.operations.training_settings import train_settings
from core.specs import RetrainSpec
from dcaecore import DCAE, VARIANTS
from tests.core.in_process import InProcess

FIELDS = {
    "image_size": 32, "batch_size": 2, "n_epochs": 3, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-3, "val_steps": 16,
    "num_workers": 0, "num_save_images": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    from core.settings import Settings

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = InProcess(
        Settings(home=tmp_path_factory.mktemp("retrain"), data_dir=data_dir, device="cpu", num_threads=1, pause_release_s=0)
    )
    yield made
    made.store.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def parent(bench):
    return bench.add().id


class Dies(Context):
    """Its process is gone after so many steps: the exception stands for a kill -9, and nothing is reported."""

    steps = 0

    def poll(self, steps_done=None):
        self.steps += 1
        if self.steps == 6:
            raise SystemError("killed")
        return super().poll(steps_done)


def test_the_parents_masks_and_layout_are_kept(bench):
    torch.manual_seed(0)
    masks = {n: torch.rand(p.shape) > 0.5 for n, p in DCAE(VARIANTS["tiny"]).named_parameters() if p.ndim > 1}
    sparse = bench.add(name="sparse", masks=masks)
    job = bench.run("retrain", sparse.id, **FIELDS, weight_decay=0.5, ema_decay=0.5)
    made = load(bench.store, job.model_id)
    assert made.row.kind == "retrained" and list(made.row.parents) == [("parent", sparse.id)]
    state = made.model.state_dict()
    assert made.masks.keys() == masks.keys() and all(torch.equal(mask, made.masks[name]) for name, mask in masks.items())
    assert sum(int((state[name][~mask] != 0).sum()) for name, mask in masks.items()) == 0
    assert made.row.facts["sparsity"] == pytest.approx(sparse.facts["sparsity"], abs=5e-3)
    cut = bench.run("prune", sparse.id, rate=0.5)
    trained = bench.run("retrain", cut.model_id, **FIELDS)
    narrow, again = (load(bench.store, ref) for ref in (cut.model_id, trained.model_id))
    assert narrow.row.layout == again.row.layout != sparse.layout
    # Failure 9: the optimizer is built after the pruning, so the narrow model's own weights move.
    moved = [not torch.equal(value, narrow.model.state_dict()[name]) for name, value in again.model.state_dict().items()]
    assert sum(moved) > 0.9 * len(moved)
    assert all(not (again.model.state_dict()[name] * ~mask).any() for name, mask in again.masks.items())


def test_curves_pictures_progress_and_result(bench, parent):
    job = bench.run("retrain", parent, **FIELDS, eval_interval=3)
    steps, losses = st.metrics.series(bench.store, job.id, "loss")
    assert list(steps) == [1, 2, 3, 4, 5, 6] and all(type(value) is float for value in losses)
    assert list(st.metrics.series(bench.store, job.id, "val_psnr_db")[0]) == [0, 6]
    rates = list(st.metrics.series(bench.store, job.id, "learning_rate")[1])
    settings = train_settings(RetrainSpec.model_validate(FIELDS))
    assert rates == pytest.approx([settings.rate(step) for step in range(6)]) and job.result["last_learning_rate"] == rates[-1]
    folder = bench.store.job_folder(job.id) / "images"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{what}_{i:02d}.png" for what in ("original", "step_00000000", "step_00000006") for i in range(2)}
    with Image.open(folder / "step_00000006_00.png") as picture:
        assert picture.size == (32, 32)
    assert job.result["validation"]["psnr_db"] == st.metrics.series(bench.store, job.id, "val_psnr_db")[1][-1]
    assert job.result["best_step"] == 6 and job.result["steps"] == 6 and job.result["step_s"] > 0
    assert job.result["warning"] is None
    identity = st.get_model(bench.store, job.model_id).dataset
    assert identity["location"] == "mspacman" and identity["image_size"] == 32 and identity["rows_sha256"]


# Failure 4: the best checkpoint was never saved.
def test_the_best_weights_become_the_model(bench, parent):
    best = bench.run("retrain", parent, **FIELDS)
    bench.run("evaluate", best.model_id, image_size=32, num_images=16, split="validation")
    measured = st.scores.scores(bench.store, best.model_id, split="validation")["psnr_db"]
    values = dict(zip(*st.metrics.series(bench.store, best.id, "val_psnr_db"), strict=True))
    assert best.result["best_value"] == max(value for step, value in values.items() if step > 0)
    assert measured == pytest.approx(best.result["best_value"], abs=1e-3)


def test_a_dead_attempt_goes_on_from_its_checkpoint_to_the_same_weights(bench, parent):
    fields = {**FIELDS, "save_interval": 1, "ema_decay": 0.5, "seed": 11}
    whole = bench.run("retrain", parent, **fields)
    bench.submit("retrain", parent, **fields)
    first = bench.claim()
    with pytest.raises(SystemError):
        bench.perform(first, Dies)
    assert {row.step for row in st.checkpoints.list_checkpoints(bench.store, first.id)} == {2, 4}
    st.jobs.resume(bench.store, first.id)
    second = bench.claim()
    assert second.id == first.id and second.attempt == first.attempt + 1
    done = bench.perform(second)
    assert any("Going on from step 4" in line["message"] for line in bench.log(done))
    # The same identity: the same weights from the same spec, so the second job links the first one's model.
    assert done.model_id == whole.model_id
    steps, losses = st.metrics.series(bench.store, done.id, "loss")
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    assert list(losses) == list(st.metrics.series(bench.store, whole.id, "loss")[1])


def test_a_pause_frees_the_device_and_a_resume_ends_it(bench, parent):
    bench.submit("retrain", parent, **FIELDS, seed=12)
    job = bench.claim()
    st.jobs.request(bench.store, job.id, "pause")
    paused = bench.perform(job)
    assert paused.state == "paused" and paused.model_id is None
    st.jobs.resume(bench.store, job.id)
    done = bench.perform(bench.claim())
    assert done.state == "done" and done.model_id == bench.run("retrain", parent, **FIELDS, seed=12).model_id


def test_a_cancel_makes_no_model_and_keeps_its_checkpoint(bench, parent):
    bench.submit("retrain", parent, **FIELDS, seed=13)
    job = bench.claim()
    st.jobs.request(bench.store, job.id, "cancel")
    ended = bench.perform(job)
    assert ended.state == "cancelled" and ended.model_id is None
    assert list((bench.store.job_folder(job.id) / "checkpoints").glob("step_*"))


# Failure 3: hyper-parameters set in the form were ignored, but for epochs and steps.
def test_every_training_field_reaches_the_loop():
    """What the loop takes has the same names, so none is lost on the way."""
    spec = RetrainSpec.model_construct(  # unchecked: no training takes them all
        n_epochs=2, steps_per_epoch=3, optimizer_name="adam", betas=(0.5, 0.6), momentum=0.5, eps=1e-6, weight_decay=0.1,
        decay_norms_and_biases=True, muon_max_side=64, grad_clip=0.5, ema_decay=0.9, init_lr=3e-4, lr_schedule_name="step",
        warmup_epochs=1, warmup_lr=2e-6, min_lr=1e-7, lr_gamma=0.5, lr_step_epochs=2, reconstruction_loss="mse", foreground_weight=2.0,
        perceptual_weight=0.5, frozen_part="encoder", batchnorm="train", dtype="bfloat16", seed=3, eval_interval=2,
        best_metric="ssim", keep="last", save_interval=2, log_interval=7, teacher="baseline", distill_output_weight=1.0,
        distill_latent_weight=2.0, distill_features_weight=3.0, accumulation_steps=2, recompute=True, compile_model=True,
        lr_patience=3, frozen_stages=("decoder.conv_in",), patience=4, min_gain=0.1, max_seconds=60.0, keep_every=2, layer_stats=True,
    )  # fmt: skip
    standard = train_settings(RetrainSpec())
    settings = train_settings(spec)
    outside = {
        "data",
        "image_size",
        "batch_size",
        "val_steps",
        "num_save_images",
        "num_workers",
        "processes",
        "machines",
        "row_weights",
        "more_data",
        "data_weights",
        "data_weights_end",
        "data_temperature",
        "draw_by",
        "draw_power",
        "loss_table",
        "teacher",
        "resize_method",
        "good_as",
    }
    for name, value in spec.model_dump().items():
        assert name in outside or name.startswith("augment_") or getattr(settings, name) == value != getattr(standard, name), name
    assert settings.betas == (0.5, 0.6) and settings.total_steps == spec.total_steps


def test_a_warm_up_longer_than_the_training_ends_with_the_rate_reached(bench, parent):
    job = bench.run("retrain", parent, **{**FIELDS, "warmup_epochs": 30})
    rate = st.metrics.series(bench.store, job.id, "learning_rate")[1][-1]
    assert f"{rate:.3g}" in job.result["warning"]
    assert {"level": "warning", "message": job.result["warning"]}.items() <= next(
        line for line in bench.log(job) if line["level"] == "warning"
    ).items()
