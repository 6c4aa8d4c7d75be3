"""A decoder more than three times as fast: pruned, retrained within ten minutes, and compared with what plain means reach in that time."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fresh import service
from benchmarks.results import machine, table, write_section
from core.checks import changed
from core.model_manager import ModelManager
from core.presets import PRESETS
from core.specs import PruneSpec
from dcaecore.layout import INTERNAL_KINDS
from store import MeasurementRow
from store.jobs import list_jobs
from store.scores import measurements

PLAIN_PRUNING = PruneSpec(
    method="structured", score="l2", compensate=False, part="decoder", kinds=(*INTERNAL_KINDS, "stream"), rate=0.5
)
"""Plain magnitude pruning: one rate for all sites of the decoder, the one that decodes about as fast as the preset."""
HIGHER_RATE = changed(PLAIN_PRUNING, rate=0.7)
RECIPE = {**PRESETS["medium"].retrain.model_dump(exclude_defaults=True), "eval_interval": 5}
"""The presets' retraining, validated less often; `Way` says how long."""
ADAMW = {**RECIPE, "optimizer_name": "adamw"}
MSE = {
    **{key: RECIPE[key] for key in ("batch_size", "warmup_epochs", "init_lr", "frozen_part", "val_steps", "eval_interval")},
    "reconstruction_loss": "mse",
}
"""Mean squared error over all pixels alike, the form's optimizer (AdamW) and choice of the best step, at
the same rate and batch."""
EPOCH = 50
BATCHES = (8, 1)


@dataclass(frozen=True)
class Way:
    """How a model of the table is made; where steps are cheaper there are more epochs of 50 of them, for about the same minutes."""

    title: str
    prune: PruneSpec | None
    epochs: int
    recipe: dict[str, Any]


WAYS = (
    Way("aggressive preset", PRESETS["aggressive"].prune, 100, RECIPE),
    Way("plain L2 at 0.7, MSE", HIGHER_RATE, 94, MSE),
    Way("plain L2 at 0.7, the presets' loss", HIGHER_RATE, 94, ADAMW),
    Way("medium preset", PRESETS["medium"].prune, 80, RECIPE),
    Way("dense, retrained, the presets' loss", None, 34, ADAMW),
    Way("plain L2 at 0.5, MSE", PLAIN_PRUNING, 94, MSE),
    Way("plain L2 at 0.5, the presets' loss", PLAIN_PRUNING, 94, ADAMW),
)


def main() -> None:
    """Each way in turn, then all of them in one evaluation and one interleaved benchmark a batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="Where the store stays; else it goes with the run.")
    parser.add_argument(
        "--only", nargs="+", choices=[way.title for way in WAYS], help="These ways; the others are taken as done."
    )
    asked = parser.parse_args()
    with service(asked.home) as manager:
        dense = manager.initialize_model("demo", name="demo")
        for way in WAYS:
            if asked.only is None or way.title in asked.only:
                make(manager, dense.id, way)
        report(manager, dense.id, asked.only)


def make(manager: ModelManager, dense: str, way: Way) -> None:
    """Prunes and retrains."""
    parent = dense
    if way.prune is not None:
        pruned = manager.wait(manager.prune_model(dense, way.prune, name=f"{way.title}, pruned").id)
        assert pruned.model_id is not None, pruned.error
        parent = pruned.model_id
        manager.wait(manager.evaluate_model(parent).id)
    spec = {**way.recipe, "n_epochs": way.epochs, "steps_per_epoch": EPOCH}
    trained = manager.wait(manager.retrain_model(parent, spec, name=way.title).id)
    assert trained.model_id is not None, trained.error


def report(manager: ModelManager, dense: str, only: list[str] | None) -> None:
    """The section, from the store; one of its own where only some ways were asked for."""
    found = {job.name: job for job in list_jobs(manager.store, ("done",), 100, operations=("retrain",))}
    ways = [way for way in WAYS if way.title in found]
    models = {way.title: str(found[way.title].model_id) for way in ways}
    for ref in (dense, *models.values()):
        manager.wait(manager.evaluate_model(ref).id)
    for batch in BATCHES:
        manager.wait(manager.benchmark_models([dense, *models.values()], {"batch_size": batch, "repeats": 20}).id)
    timed = measurements(manager.store, dense, limit=len(BATCHES))[::-1]
    rows = [row(manager, "dense", dense, dense, None, timed)]
    for way in ways:
        job = found[way.title]
        effort = f"{job.result['steps']} steps, {job.result['step_s'] * job.result['steps'] / 60:.1f} min"
        rows.append(row(manager, way.title, models[way.title], dense, effort, timed))
    which, option = ("", "") if only is None else (f": {', '.join(only)}", f" --only {shlex.join(only)}")
    write_section(
        f"A decoder more than three times as fast{which}",
        [
            f"`.venv/bin/python -m benchmarks.fast_decoder{option}` on {machine()}. Demo model, `mspacman`, 128 px, float32; quality on 64 "
            f"test images; decode: median of 20 interleaved repeats at batch {' and '.join(map(str, BATCHES))}. Minutes: the "
            "retraining with its validations. Only the decoder is pruned, and the encoder is held: latents are the baseline's, and a world "
            "model that was trained on them can stay. The presets' retraining uses Muon. Plain L2: magnitude, one shot, no fit, no "
            "distillation, one rate for all sites, the one that decodes about as fast as the preset; retrained with AdamW "
            "by MSE and the form's own choice of the best step, or by the presets' loss and choice.",
            "",
            *table(["", "retrained", "PSNR", "foreground", "decode, batch 8", "batch 1", "parameters", "latent drift"], rows),
        ],
    )


def row(manager: ModelManager, title: str, ref: str, dense: str, effort: str | None, timed: list[MeasurementRow]) -> list[str]:
    """A line of the table."""
    quality, before = manager.get_model_metrics(ref), manager.get_model_metrics(dense)

    def db(key: str) -> str:
        value, reference = quality[key], before[key]
        assert value is not None and reference is not None
        return f"{value:.2f}" if effort is None else f"{value:.2f} ({value - reference:+.2f})"

    def ms(one: MeasurementRow) -> str:
        own, reference = one.models[ref]["decode_ms"], one.models[dense]["decode_ms"]
        return f"{own:.1f} ms" if effort is None else f"{own:.1f} ms (x{reference / own:.2f})"

    parameters = manager.get_model(ref).facts["parameters"] / manager.get_model(dense).facts["parameters"] - 1
    drift = quality.get("latent_drift")
    return [
        title, effort or "", db("psnr_db"), db("foreground_psnr_db"), *map(ms, timed), "" if effort is None else f"{parameters:+.1%}",
        "" if drift is None else f"{drift:.1%}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
