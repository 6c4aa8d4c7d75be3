"""A model trained from scratch for some minutes, then its decoder pruned to a sixth of its latency and retrained: what is left of it.

Made for a GPU (`--device cuda:0`); on a CPU with a small variant it shows that it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.fresh import service
from benchmarks.results import machine, table, write_section
from core.devices import default_device
from core.model_manager import ModelManager
from core.presets import PRESETS
from store.scores import measurements

QUALITY = {"psnr_db": "PSNR", "foreground_psnr_db": "foreground PSNR"}
KEPT = 0.97
"""Share of the trained model's decibels that is to be left."""
LOSS = PRESETS["medium"].retrain
TRIALS = (30, 130)
"""Steps of the two trials."""


def main() -> None:
    """Trains, measures, solves for the latency, prunes, retrains, compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="Else that of new jobs.")
    parser.add_argument("--variant", default="demo-f32c32", help="Whose shape is trained, from random weights.")
    parser.add_argument("--minutes", type=float, default=20.0, help="Of each of the two trainings.")
    parser.add_argument("--speed", type=float, default=6.0, help="How much faster the decoder is to be.")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="Of trainings, profile and benchmark.")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--home", type=Path, help="Where the store stays; else it goes with the run.")
    asked = parser.parse_args()
    with service(asked.home) as manager:
        device = asked.device or default_device(manager.settings.device)
        trained, first = train(manager, manager.initialize_model(asked.variant, random_seed=0).id, asked, device)
        wanted, smaller = prune(manager, trained, asked, device)
        retrained, second = train(manager, smaller, asked, device, frozen_part="encoder")
        models = {f"trained, {first}": trained, "pruned": smaller, f"pruned and retrained, {second}": retrained}
        report(manager, models, wanted, asked, device)


def train(manager: ModelManager, parent: str, asked: argparse.Namespace, device: str, **more: Any) -> tuple[str, str]:
    """A model that was trained for the minutes, by the presets' loss, and its steps and minutes.

    As many steps as two trials say fit: what both took alike (start, validations) is no step's.
    """
    spec = {
        **LOSS.model_dump(exclude_defaults=True), **more, "image_size": asked.image_size, "batch_size": asked.batch_size,
        "dtype": asked.dtype, "frozen_part": more.get("frozen_part", "none"), "n_epochs": 1, "warmup_epochs": 0,
    }  # fmt: skip
    took = []
    for trial_steps in TRIALS:
        trial = manager.wait(manager.retrain_model(parent, {**spec, "steps_per_epoch": trial_steps}, device=device).id)
        took.append(trial.result["step_s"] * trial_steps)
    step_s = max((took[1] - took[0]) / (TRIALS[1] - TRIALS[0]), 0.02 * took[0] / TRIALS[0])
    steps = max(TRIALS[0], int(60 * asked.minutes / step_s))
    epochs = max(1, steps // 100)
    spec |= {"n_epochs": epochs, "steps_per_epoch": steps // epochs, "warmup_epochs": min(2, epochs // 4), "eval_interval": 5}
    done = manager.wait(manager.retrain_model(parent, {**spec, "max_seconds": 60 * asked.minutes}, device=device).id)
    assert done.model_id is not None
    minutes = done.result["step_s"] * done.result["steps"] / 60
    return done.model_id, f"{done.result['steps']} steps in {minutes:.1f} min"


def prune(manager: ModelManager, model: str, asked: argparse.Namespace, device: str) -> tuple[float, str]:
    """The speed that was asked of the solver (all that it can reach, where that is less) and the pruned model."""
    how = {
        **PRESETS["aggressive"].prune.model_dump(include={"method", "score", "part", "kinds"}),
        "calibration_size": asked.image_size,
    }
    size = {"image_size": asked.image_size}
    manager.wait(manager.measure_sensitivity(model, {"prune": how, "granularity": "stage", **size}, device=device).id)
    grid = {"part": "decoder", "streams": True, "batch_size": asked.batch_size, "dtype": asked.dtype, **size}
    manager.wait(manager.profile_latency(model, grid, device=device).id)
    least, now = manager.reach(model, "decode_ms", device=device)
    wanted = max(now / asked.speed, 1.01 * least)
    proposal = manager.propose(model, cost="decode_ms", at_most=wanted, device=device)
    job = manager.wait(manager.prune_model(model, proposal.spec, device=device).id)
    assert job.model_id is not None
    return now / wanted, job.model_id


def report(manager: ModelManager, models: dict[str, str], wanted: float, asked: argparse.Namespace, device: str) -> None:
    """The section: quality on test images, decode in one interleaved run, and whether 97 % is left."""
    trained, *_, retrained = models.values()
    for ref in models.values():
        manager.wait(manager.evaluate_model(ref, {"image_size": asked.image_size}, device=device).id)
    how = {"image_size": asked.image_size, "batch_size": asked.batch_size, "dtype": asked.dtype, "repeats": 30}
    manager.wait(manager.benchmark_models(list(models.values()), how, device=device).id)
    (timed,) = measurements(manager.store, trained, limit=1)
    before, rows = manager.get_model_metrics(trained), []
    for title, ref in models.items():
        means, ms = manager.get_model_metrics(ref), timed.models[ref]["decode_ms"]
        share = [share_text(means[key], before[key]) for key in QUALITY]
        parameters = manager.get_model(ref).facts["parameters"] / 1e6
        rows.append([title, f"{parameters:.2f} M", *share, f"{ms:.2f} ms (x{timed.models[trained]['decode_ms'] / ms:.2f})"])
    after = manager.get_model_metrics(retrained)
    kept = all((after[key] or 0) >= KEPT * (before[key] or 0) for key in QUALITY)
    write_section(
        f"Trained from scratch, pruned, retrained ({device})",
        [
            f"`python -m benchmarks.trained_and_pruned --device {device} --variant {asked.variant} --minutes {asked.minutes:g} "
            f"--batch-size {asked.batch_size} --dtype {asked.dtype}` on {machine()}; {timed.settings['device_name']}. `mspacman` at "
            f"{asked.image_size} px, from random weights; 64 test images; the solver was asked for x{wanted:.2f} in the decoder. The "
            f"encoder is held in the second training. At least {KEPT:.0%} of both is {'' if kept else 'not '}left.",
            "",
            *table(["", "parameters", *QUALITY.values(), f"decode, batch {asked.batch_size}"], rows),
        ],
    )


def share_text(value: float | None, reference: float | None) -> str:
    """Decibels, and what part of the trained model's they are; a dash where there are none."""
    return "–" if value is None or not reference else f"{value:.2f} ({value / reference:.1%})"


if __name__ == "__main__":
    main()
