"""Each field of the retrain form changes what it says, alone: the user's first attempt ignored all but two of them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import store.jobs as jobs
from core.errors import CoreError
from core.operations import retrain
from core.operations.context import Context
from core.operations.images import open_parts
from core.operations.models import new_model
from core.specs import DataSpec, ImportSpec, RetrainSpec
from dcaecore import DCAE, VARIANTS, ConfigError, DataError, load_model
from store import add_model, metrics, open_store

# Ninety trainings by the same lines, which other files' trainings are traced in.
pytestmark = pytest.mark.usefixtures("untraced")

BASE: dict[str, Any] = {
    "image_size": 32, "batch_size": 2, "n_epochs": 2, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-2, "val_steps": 6,
    "num_workers": 0, "keep": "last",
}  # fmt: skip

WEIGHTS: dict[str, Any] = {
    "data": {"deny_rows": ["00000000", "00000001", "00000002", "00000023", "00000024", "00000045", "00000046"], "split_seed": 1},
    "image_size": 64, "batch_size": 3, "n_epochs": 3, "steps_per_epoch": 3, "seed": 1, "dtype": "bfloat16", "optimizer_name": "sgd",
    "betas": [0.5, 0.6], "eps": 0.1, "weight_decay": 0.5, "grad_clip": 1e-4, "ema_decay": 0.5, "init_lr": 2e-2,
    "lr_schedule_name": "constant", "warmup_epochs": 1, "min_lr": 5e-3, "reconstruction_loss": "mse", "foreground_weight": 21.0,
    "frozen_part": "encoder", "frozen_stages": ["decoder.conv_out"], "resize_method": "nearest", "augment_flip": 1.0,
    "augment_crop": 0.5, "augment_scale": 0.5, "augment_rotate": 20.0, "augment_shift": 0.3, "augment_jitter": 0.5,
    "augment_blur": 4.0, "row_weights": [[f"{row:08d}", 20.0] for row in range(0, 120, 9)],
    "more_data": [{"split_seed": 1}], "draw_by": "contrast", "max_seconds": 1e-6, "good_as": "other", "accumulation_steps": 2,
}  # fmt: skip
"""Fields whose change must change the trained weights (the value to set)."""

TOGETHER: dict[str, tuple[dict[str, Any], Any]] = {
    "momentum": ({"optimizer_name": "sgd"}, 0.1),
    "muon_max_side": ({"optimizer_name": "muon"}, 8),
    "decay_norms_and_biases": ({"weight_decay": 1.0}, True),
    "warmup_lr": ({"warmup_epochs": 1}, 5e-3),
    "lr_gamma": ({"lr_schedule_name": "exponential"}, 0.9),
    "teacher": ({"teacher": "baseline", "distill_output_weight": 1.0}, "other"),
    "distill_output_weight": ({"teacher": "baseline", "distill_latent_weight": 0.1}, 10.0),
    "distill_latent_weight": ({"teacher": "baseline", "distill_output_weight": 0.1}, 10.0),
    "distill_features_weight": ({"teacher": "baseline", "distill_output_weight": 0.1}, 10.0),
    "patience": ({"lr_schedule_name": "plateau", "lr_patience": 50, "n_epochs": 4, "min_gain": 100.0}, 1),
    "lr_patience": ({"lr_schedule_name": "plateau", "n_epochs": 5, "min_gain": 100.0}, 0),
    "min_gain": ({"lr_schedule_name": "plateau", "n_epochs": 5}, 100.0),
    "data_weights": ({"more_data": [{"split_seed": 1}]}, [3.0, 1.0]),
    "data_weights_end": ({"more_data": [{"split_seed": 1}], "data_weights": [1.0, 1.0]}, [0.0, 1.0]),
    "data_temperature": ({"more_data": [{"split_seed": 1}], "data_weights": [9.0, 1.0], "batch_size": 4}, 50.0),
    "lr_step_epochs": ({"lr_schedule_name": "step", "n_epochs": 3}, 2),
}
"""Fields that apply only beside others: (the others, the value)."""


class Watching(Context):
    """Counts the threads that load images while the training runs."""

    loaders = 0

    def poll(self, steps_done=None):
        self.loaders = max(self.loaders, sum(thread.name.startswith("loader") for thread in threading.enumerate()))
        return super().poll(steps_done)


class Bench:
    """Runs retrainings in this process, without a worker."""

    def __init__(self, settings) -> None:
        self.settings, self.store = settings, open_store(settings.home)
        self.parent, self.other = self.add("tiny", 0), self.add("other", 1)
        self.cache: dict[str, dict[str, torch.Tensor]] = {}

    def add(self, name: str, seed: int) -> str:
        torch.manual_seed(seed)
        model = DCAE(VARIANTS["tiny"])
        made = new_model(self.store, name=name, kind="baseline", spec=ImportSpec(source="tiny", random_seed=seed),
                         state=model.state_dict(), config=model.config, layout=model.layout)  # fmt: skip
        return add_model(self.store, made).id

    def run(self, parent: str | None = None, **changes: Any) -> tuple[Context, Any]:
        spec = RetrainSpec.model_validate({**BASE, **changes})
        job = jobs.submit(self.store, "retrain", spec.model_dump(mode="json"), parent=parent or self.parent, device="cpu")
        context = Watching(self.store, jobs.claim(self.store, "cpu"), self.settings)
        try:
            outcome = retrain.run(spec, context)
        finally:
            context.close()
        jobs.complete(self.store, job.id, model=outcome.model, result=outcome.result)
        return context, outcome

    @cached_property
    def plain(self) -> tuple[Context, Any]:
        """A run of the fields' base values."""
        return self.run()

    def weights(self, **changes: Any) -> str:
        key = json.dumps(changes, sort_keys=True, default=str)
        if key not in self.cache:
            self.cache[key] = self.run(**changes)[1].model.weights_digest
        return self.cache[key]

    def series(self, run: tuple[Context, Any], key: str) -> Any:
        return metrics.series(self.store, run[0].job.id, key)

    def lines(self, run: tuple[Context, Any], start: str) -> list[str]:
        found = [line["message"] for line in self.log(run[0]) if line["message"].startswith(start)]
        return [line.split(":")[0] for line in found]

    def log(self, context: Context) -> list[dict[str, str]]:
        return [json.loads(line) for line in (context.folder / "log.jsonl").read_text().splitlines()]


SEEN: dict[str, tuple[Any, Callable[[Bench, Any], Any]]] = {
    "eval_interval": (2, lambda bench, run: list(bench.series(run, "val_psnr_db")[0])),
    "val_steps": (5, lambda bench, run: bench.series(run, "val_psnr_db")[1][0]),
    "best_metric": ("loss", lambda bench, run: run[1].result["best_value"]),
    "num_save_images": (3, lambda bench, run: len(list((run[0].folder / "images").glob("original_*")))),
    "save_interval": (1, lambda bench, run: bench.lines(run, "Checkpoint")),
    "keep_every": (1, lambda bench, run: bench.lines(run, "Checkpoint")),
    "log_interval": (3, lambda bench, run: bench.lines(run, "step")),
    "num_workers": (2, lambda bench, run: run[0].loaders),
}
"""Fields that are seen in the job's record: (the value to set, what is looked at)."""

ELSEWHERE = {
    "keep",
    "batchnorm",
    "perceptual_weight",
    "recompute",
    "compile_model",
    "layer_stats",
    "processes",
    "machines",
    "loss_table",
    "draw_power",
}
"""Fields with a test of their own below; what perceptual_weight adds to the loss: tests/dcaecore/test_trainer.py;
recompute and compile_model: tests/dcaecore/test_step_settings.py; layer_stats: tests/core/test_layers.py;
processes and machines: tests/core/test_ranks.py; loss_table and draw_power: tests/core/test_mixing.py."""

DEFAULTS: dict[str, Any] = {
    "n_epochs": 1, "steps_per_epoch": 100, "init_lr": 1e-4, "warmup_epochs": 5, "warmup_lr": 1e-6, "lr_schedule_name": "cosine",
    "optimizer_name": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "decay_norms_and_biases": False,
    "grad_clip": 1.0, "image_size": 128, "batch_size": 1, "num_workers": 2, "val_steps": 100, "save_interval": 5,
    "eval_interval": 1, "log_interval": 100, "num_save_images": 8, "dtype": "float32", "seed": 0, "reconstruction_loss": "l1",
    "perceptual_weight": 0.0, "foreground_weight": 1.0,
}  # fmt: skip
"""What the form was asked to start with (128 px for the demo's sake)."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    from core.settings import Settings

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(Settings(home=tmp_path_factory.mktemp("bench"), data_dir=data_dir, device="cpu"))
    torch.set_num_threads(threads)


def test_every_field_has_its_case():
    assert set(RetrainSpec.model_fields) == set(WEIGHTS) | set(TOGETHER) | set(SEEN) | ELSEWHERE


def test_the_form_starts_with_what_was_asked_for():
    spec = RetrainSpec()
    assert {name: getattr(spec, name) for name in DEFAULTS} == DEFAULTS


# Failure 3: hyper-parameters set in the form were ignored, but for epochs and steps.
@pytest.mark.parametrize("field", WEIGHTS)
def test_the_field_alone_changes_the_weights(bench, field):
    assert bench.weights() != bench.weights(**{field: WEIGHTS[field]})


@pytest.mark.parametrize("field", TOGETHER)
def test_the_field_changes_the_weights_where_it_applies(bench, field):
    beside, value = TOGETHER[field]
    assert bench.weights(**beside) != bench.weights(**{**beside, field: value})


def test_the_teacher_is_an_edge_of_the_lineage(bench):
    outcome = bench.run(teacher="other", distill_latent_weight=1.0)[1]
    assert [role for role, _model in outcome.model.parents] == ["parent", "teacher"]
    assert dict(outcome.model.parents)["teacher"] == bench.other
    for fields in ({"teacher": "baseline"}, {"distill_output_weight": 1.0}):
        with pytest.raises(ValidationError, match="go together"):
            bench.run(**fields)


def test_the_same_spec_gives_the_same_weights_and_logging_does_not_matter(bench):
    quiet = bench.run(num_save_images=0, save_interval=1, log_interval=1, num_workers=2)[1].model
    assert quiet.weights_digest == bench.weights()
    assert quiet.spec == bench.run()[1].model.spec and bench.plain[1].model.weights_digest == quiet.weights_digest


@pytest.mark.parametrize("field", SEEN)
def test_the_field_alone_is_seen_in_the_record(bench, field):
    value, look = SEEN[field]
    assert look(bench, bench.run(**{field: value})) != look(bench, bench.plain)


def test_batchnorm_statistics_move_only_where_asked(bench):
    decoder = replace(VARIANTS["tiny"].decoder, norms=("bn2d",) * 4, acts=("relu",) * 4)
    torch.manual_seed(0)
    model = DCAE(replace(VARIANTS["tiny"], decoder=decoder))
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    made = new_model(bench.store, name="batchnorm", kind="baseline", spec=ImportSpec(source="tiny", random_seed=1),
                     state=model.state_dict(), config=model.config, layout=model.layout)  # fmt: skip
    parent = add_model(bench.store, made).id
    for setting, moved in (("frozen", False), ("train", True)):
        _, outcome = bench.run(parent, batchnorm=setting)
        after = load_model(bench.store.blobs.path(outcome.model.blob_digest)).model.state_dict()
        assert before and all(torch.equal(value, after[name]) != moved for name, value in before.items())


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
    wild = {"init_lr": 1.0, "n_epochs": 5, "optimizer_name": "sgd", "grad_clip": 0.0, "lr_schedule_name": "constant"}
    best, last = bench.run(**wild, keep="best")[1], bench.run(**wild, keep="last")[1]
    assert best.result["best_step"] == last.result["best_step"] < 10
    assert best.model.weights_digest != last.model.weights_digest


def test_checkpoint_and_log_intervals(bench):
    context, _ = bench.run(n_epochs=4, save_interval=2, log_interval=3)
    lines = [line["message"] for line in bench.log(context)]
    assert [line for line in lines if line.startswith("Checkpoint")] == [f"Checkpoint at step {s} (interval)." for s in (4, 8)]
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == ["step 3", "step 6", "step 8"]


def test_metrics_are_numbers_at_each_step(bench):
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
    context = Context(bench.store, jobs.submit(bench.store, "retrain", {}, device="elsewhere"), bench.settings)
    with pytest.raises(CoreError, match="parent"):
        retrain.run(RetrainSpec(), context)
    context.close()


HUB: dict[str, Any] = {"kind": "hub", "location": "someone/frames", "max_rows": 60}

DATA: dict[str, Any] = {
    "kind": "parquet", "location": "someone/else", "column": "next_frame_image", "revision": "v2", "max_rows": 30, "split_seed": 3,
    "validation_location": "someone/validation", "deny_rows": ["00000003"],
}  # fmt: skip


def png(*colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def rows(location: str, revision: str | None, broken: int = -1) -> Iterator[dict[str, Any]]:
    """60 rows in 12 episodes; the picture's colour tells row, column, location and revision."""
    place = {"someone/frames": 0, "someone/else": 50, "someone/validation": 100, "here": 150}[location]
    for i in range(60):
        cells = {
            column: png(i, place + (revision == "v2"), shade) for shade, column in enumerate(("frame_image", "next_frame_image"))
        }
        yield {**cells, "episode": i // 5} if i != broken else {**cells, "frame_image": b"broken", "episode": i // 5}


@pytest.fixture
def look(bench, monkeypatch, tmp_path):
    """The colours that training and validation see with a data spec."""
    monkeypatch.setattr("dcaecore.data._hub_stream", lambda source: rows(source.location, source.revision))
    settings = bench.settings.model_copy(update={"data_dir": tmp_path})
    context = Context(bench.store, jobs.submit(bench.store, "retrain", {}, device="elsewhere"), settings)

    def found(**fields: Any) -> list[list[tuple[int, ...]]]:
        parts = open_parts(DataSpec.model_validate(fields), 8, context, "train", "validation")
        return [[tuple(int(c) for c in part.cache.row(int(row))[0][0, 0]) for row in part.rows] for part in parts]

    yield found
    context.close()


@pytest.mark.parametrize("field", DATA)
def test_the_data_field_alone_changes_the_images(look, tmp_path, field):
    plain = look(**HUB)
    value, changes = DATA[field], {}
    if field == "kind":
        table = {key: [row[key] for row in rows("here", None)] for key in ("frame_image", "episode")}
        pq.write_table(pa.table(table), tmp_path / "here.parquet")
        changes = {"location": str(tmp_path / "here.parquet")}
    train, validation = look(**{**HUB, field: value, **changes})
    assert [train, validation] != plain and train and validation
    expected = {
        "max_rows": lambda: max(train + validation)[0] < 30 <= max(plain[0] + plain[1])[0],
        "deny_rows": lambda: 3 not in {colour[0] for colour in train + validation},
        "validation_location": lambda: {colour[1] for colour in train} == {0} and {colour[1] for colour in validation} == {100},
        "column": lambda: {colour[2] for colour in train + validation} == {1},
        "revision": lambda: {colour[1] for colour in train + validation} == {1},
        "location": lambda: {colour[1] for colour in train + validation} == {50},
        "kind": lambda: {colour[1] for colour in train + validation} == {150},
        "split_seed": lambda: {colour[0] // 5 for colour in validation} != {colour[0] // 5 for colour in plain[1]},
    }
    assert expected[field]()


def test_broken_images_stop_the_job_or_are_skipped_and_counted(bench, tmp_path):
    table = {key: [row[key] for row in rows("here", None, broken=31)] for key in ("frame_image", "episode")}
    pq.write_table(pa.table(table), tmp_path / "here.parquet")
    data = {"kind": "parquet", "location": str(tmp_path / "here.parquet")}
    with pytest.raises(DataError, match="00000031"):
        bench.run(data=data, batch_size=60)
    context, outcome = bench.run(data={**data, "skip_broken": True}, batch_size=60)
    assert outcome.result["skipped_rows"] == ["00000031"]
    assert any("1 broken images were skipped: 00000031" in line["message"] for line in bench.log(context))


def test_every_data_field_has_its_case():
    assert set(DataSpec.model_fields) == {*DATA, "skip_broken"}


def test_a_foreground_weight_without_a_foreground_is_said(bench, tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(png(i, 0, 0))
    folder = {"kind": "folder", "location": str(tmp_path)}
    context, _ = bench.run(data=folder, foreground_weight=21.0)
    assert [line["message"] for line in bench.log(context) if line["level"] == "warning"] == [
        "The images have no episodes, so nothing tells what moves: foreground_weight has no effect."
    ]
    assert not [line for line in bench.log(bench.run(data=folder)[0]) if line["level"] == "warning"]
