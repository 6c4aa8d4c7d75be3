"""The main job as one function, the set-up of a fresh machine, and the recipe of the shipped model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable

from core.compare import Comparison
from core.model_manager import ModelManager
from core.presets import PRESETS, preset_on
from core.specs import RetrainSpec
from dcaecore.sample_data import ensure_sample_set
from dcaecore.zoo import DEMO_FILE, DEMO_VARIANT
from store import JobRow, ModelRow

Follow = Callable[[JobRow], JobRow]
CURVES = ("psnr_db", "foreground_psnr_db")
RECIPE = DEMO_FILE.with_name("recipe.json")


def prepare(manager: ModelManager) -> ModelRow:
    """Sample images written, a first model imported and its validation queued: what the first page needs.

    Returns the current model.
    """
    ensure_sample_set("mspacman", manager.settings.data_folder / "samples")
    current = manager.current()
    if current is None:
        current = manager.initialize_model("demo", name="dcae_demo")
        manager.validate_model(current.id)
    return current


def run(manager: ModelManager, rate: float, *, quick: bool, follow: Follow) -> Comparison:
    """Import, prune, retrain, evaluate, benchmark; the comparison of baseline and offspring."""
    if quick:
        size = 64
        chosen = preset_on("medium", None, size)
        parent = manager.initialize_model("tiny", random_seed=0, name="dcae_tiny")
        steps = {"batch_size": 2, "n_epochs": 2, "steps_per_epoch": 3, "warmup_epochs": 0, "val_steps": 16}
        chain = manager.compress(
            parent.id,
            image_size=size,
            prune=chosen.prune.model_copy(update={"rate": rate}),
            retrain=chosen.retrain.model_copy(update=steps),
            evaluate=chosen.evaluate.model_copy(update={"num_images": 16}),
            benchmark=chosen.benchmark.model_copy(update={"repeats": 5, "starts": 1}),
        )
    else:
        parent = prepare(manager)
        chain = manager.compress(parent.id, prune=PRESETS["medium"].prune.model_copy(update={"rate": rate}))
    done = [follow(job) for job in chain]
    made = next(job.model_id for job in reversed(done) if job.model_id)
    assert made is not None
    return manager.compare([parent.id, made])


def train_demo(manager: ModelManager, *, follow: Follow) -> ModelRow:
    """The demo model from scratch: random weights of the demo shape, retrained by the shipped recipe, phase by phase.

    Its validation curve goes to `curve.csv` in the store's folder.
    """
    row = manager.initialize_model(DEMO_VARIANT, random_seed=0, name="dcae_blank")
    done, points = 0, []
    for number, phase in enumerate(json.loads(RECIPE.read_text()), start=1):
        job = follow(manager.retrain_model(row.id, RetrainSpec.model_validate(phase)))
        assert job.model_id is not None
        row = manager.get_model(job.model_id)
        points += [(number, done + int(step or 0), *values) for step, *values in validation_curve(manager, job)]
        done += int(job.result["steps"])
    with (manager.store.root / "curve.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("phase", "step", *CURVES), *points])
    return row


def validation_curve(manager: ModelManager, job: JobRow) -> list[tuple[float | None, ...]]:
    """Step and quality figures of each validation of a retraining; None where a figure could not be had."""
    series = [dict(zip(*manager.series(job.id, f"val_{key}"), strict=True)) for key in CURVES]
    return [(step, *(values.get(step) for values in series)) for step in series[0]]
