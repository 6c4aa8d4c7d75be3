"""Each field of the retrain form changes what it says, alone: the user's first attempt ignored all but two of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import store.jobs as jobs
from core.errors import CoreError
from core.operations import retrain
from core.operations.context import Context
from core.specs import RetrainSpec
from dcaecore import ConfigError
from store import open_store

BASE: dict[str, Any] = {
    "image_size": 32, "batch_size": 2, "n_epochs": 2, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-2, "val_steps": 16,
    "num_workers": 0, "keep": "last",
}  # fmt: skip

WEIGHTS: dict[str, Any] = {
    "data": {"deny_rows": ["00000000", "00000001", "00000002", "00000023", "00000024", "00000045", "00000046"], "split_seed": 1},
    "image_size": 64, "batch_size": 3, "n_epochs": 3, "steps_per_epoch": 3, "seed": 1, "dtype": "bfloat16", "optimizer_name": "sgd",
    "betas": [0.5, 0.6], "eps": 0.1, "weight_decay": 0.5, "grad_clip": 1e-4, "ema_decay": 0.5, "init_lr": 2e-2,
    "lr_schedule_name": "constant", "warmup_epochs": 1, "min_lr": 5e-3, "reconstruction_loss": "mse", "foreground_weight": 21.0,
    "frozen_part": "encoder",
}  # fmt: skip
"""Fields whose change must change the trained weights (the value to set)."""

TOGETHER: dict[str, tuple[dict[str, Any], Any]] = {
    "momentum": ({"optimizer_name": "sgd"}, 0.1),
    "decay_norms_and_biases": ({"weight_decay": 1.0}, True),
    "warmup_lr": ({"warmup_epochs": 1}, 5e-3),
    "lr_gamma": ({"lr_schedule_name": "exponential"}, 0.9),
    "lr_step_epochs": ({"lr_schedule_name": "step", "n_epochs": 3}, 2),
}
"""Fields that apply only beside others: (the others, the value)."""

ELSEWHERE = {
    "batchnorm", "perceptual_weight", "eval_interval", "val_steps", "best_metric", "keep", "num_save_images", "save_interval",
    "log_interval", "num_workers",
}  # fmt: skip
"""Fields with a test of their own below (batchnorm: tests/dcaecore/test_trainer.py)."""


class Bench:
    """Runs retrainings in this process, without a worker."""

    def __init__(self, settings) -> None:
        from core.operations.models import new_model
        from core.specs import ImportSpec
        from dcaecore import DCAE, VARIANTS

        self.settings, self.store = settings, open_store(settings.home)
        torch.manual_seed(0)
        model = DCAE(VARIANTS["tiny"])
        made = new_model(self.store, name="tiny", kind="baseline", spec=ImportSpec(source="tiny", random_seed=0),
                         state=model.state_dict(), config=model.config, layout=model.layout)  # fmt: skip
        from store import add_model

        self.parent = add_model(self.store, made).id
        self.cache: dict[str, dict[str, torch.Tensor]] = {}

    def run(self, **changes: Any) -> tuple[Context, Any]:
        spec = RetrainSpec.model_validate({**BASE, **changes})
        job = jobs.submit(self.store, "retrain", spec.model_dump(mode="json"), parent=self.parent, device="cpu")
        context = Context(self.store, jobs.claim(self.store, "cpu"), self.settings)
        try:
            outcome = retrain.run(spec, context)
        finally:
            context.close()
        jobs.complete(self.store, job.id, model=outcome.model, result=outcome.result)
        return context, outcome

    def weights(self, **changes: Any) -> str:
        key = json.dumps(changes, sort_keys=True, default=str)
        if key not in self.cache:
            self.cache[key] = self.run(**changes)[1].model.weights_digest
        return self.cache[key]

    def log(self, context: Context) -> list[dict[str, str]]:
        return [json.loads(line) for line in (context.folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    from core.settings import Settings

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(Settings(home=tmp_path_factory.mktemp("bench"), data_dir=data_dir, device="cpu"))
    torch.set_num_threads(threads)


def test_every_field_has_its_case():
    assert set(RetrainSpec.model_fields) == set(WEIGHTS) | set(TOGETHER) | ELSEWHERE


@pytest.mark.parametrize("field", WEIGHTS)
def test_the_field_alone_changes_the_weights(bench, field):
    assert bench.weights() != bench.weights(**{field: WEIGHTS[field]})


@pytest.mark.parametrize("field", TOGETHER)
def test_the_field_changes_the_weights_where_it_applies(bench, field):
    beside, value = TOGETHER[field]
    assert bench.weights(**beside) != bench.weights(**beside, **{field: value})


def test_the_same_spec_gives_the_same_weights_and_logging_does_not_matter(bench):
    quiet = bench.run(num_save_images=0, save_interval=1, log_interval=1, num_workers=2)[1].model
    assert quiet.weights_digest == bench.weights()
    assert quiet.spec == bench.run()[1].model.spec


def test_validation_fields(bench):
    context, outcome = bench.run(n_epochs=4, eval_interval=2, val_steps=5, num_save_images=3, keep="best", best_metric="loss")
    evaluated = [line["message"] for line in bench.log(context) if line["message"].startswith("validation")]
    assert [line.split(":")[0] for line in evaluated] == [f"validation at step {s}" for s in (0, 4, 8)]
    pictures = sorted(p.name for p in (context.folder / "images").iterdir())
    assert len([p for p in pictures if p.startswith("original")]) == 3
    assert len([p for p in pictures if p.startswith("step_00000008")]) == 3
    assert outcome.result["best_value"] < 1.5
    by_psnr = bench.run(n_epochs=4, eval_interval=2, val_steps=5, keep="best", best_metric="psnr_db")[1]
    assert by_psnr.result["best_value"] > 3
    more = bench.run(n_epochs=4, eval_interval=2, val_steps=16, keep="best", best_metric="loss")[1]
    assert more.result["best_value"] != outcome.result["best_value"]


def test_keep_last_or_best(bench):
    wild = {"init_lr": 0.5, "n_epochs": 5, "optimizer_name": "sgd", "grad_clip": 0.0}
    best, last = bench.run(**wild, keep="best")[1], bench.run(**wild, keep="last")[1]
    assert best.result["best_step"] == last.result["best_step"]
    assert (best.model.weights_digest == last.model.weights_digest) == (best.result["best_step"] == 10)


def test_checkpoint_and_log_intervals(bench):
    context, _ = bench.run(n_epochs=4, save_interval=2, log_interval=3)
    lines = [line["message"] for line in bench.log(context)]
    assert [line for line in lines if line.startswith("Checkpoint")] == [f"Checkpoint at step {s} (interval)." for s in (4, 8)]
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == ["step 3", "step 6", "step 8"]


def test_metrics_are_numbers_at_each_step(bench):
    from store import metrics

    context, _ = bench.run()
    steps, losses = metrics.series(bench.store, context.job.id, "loss")
    assert list(steps) == [1, 2, 3, 4] and np.isfinite(list(losses)).all()
    assert {"learning_rate", "grad_norm", "val_psnr_db"} <= set(metrics.keys(bench.store, context.job.id))


def test_a_warm_up_longer_than_the_training_warns_with_the_rate_reached(bench):
    context, outcome = bench.run(warmup_epochs=10)
    assert "never reaches 0.01" in outcome.result["warning"]
    assert any(line["level"] == "warning" for line in bench.log(context))


def test_what_cannot_be_is_refused(bench):
    with pytest.raises(ConfigError, match="Try"):
        bench.run(image_size=36)
    with pytest.raises(ConfigError, match="perceptual loss is off"):
        bench.run(perceptual_weight=1.0)
    context = Context(bench.store, jobs.submit(bench.store, "retrain", {}, device="cpu"), bench.settings)
    with pytest.raises(CoreError, match="parent"):
        retrain.run(RetrainSpec(), context)
    context.close()
