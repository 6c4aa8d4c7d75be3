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
TRIAL_STEPS = 40


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
        trained = train(manager, manager.initialize_model(asked.variant, random_seed=0).id, asked, device)
        wanted, smaller = prune(manager, trained, asked, device)
        retrained = train(manager, smaller, asked, device, frozen_part="encoder")
        report(manager, trained, smaller, retrained, wanted, asked, device)


def train(manager: ModelManager, parent: str, asked: argparse.Namespace, device: str, **more: Any) -> str:
    """A model that was trained for the minutes, by the presets' loss; as many steps as a short trial says fit."""
    spec = {
        **LOSS.model_dump(exclude_defaults=True), **more, "image_size": asked.image_size, "batch_size": asked.batch_size,
        "dtype": asked.dtype, "frozen_part": more.get("frozen_part", "none"), "n_epochs": 1, "warmup_epochs": 0,
    }  # fmt: skip
    trial = manager.wait(manager.retrain_model(parent, {**spec, "steps_per_epoch": TRIAL_STEPS}, device=device).id)
    steps = max(TRIAL_STEPS, int(60 * asked.minutes / trial.result["step_s"]))
    epochs = max(1, steps // 100)
    spec |= {"n_epochs": epochs, "steps_per_epoch": steps // epochs, "warmup_epochs": min(2, epochs // 4), "eval_interval": 5}
    done = manager.wait(manager.retrain_model(parent, {**spec, "max_seconds": 60 * asked.minutes}, device=device).id)
    assert done.model_id is not None
    return done.model_id


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


def report(
    manager: ModelManager, trained: str, smaller: str, retrained: str, wanted: float, asked: argparse.Namespace, device: str
) -> None:
    """The section: quality on test images, decode in one interleaved run, and whether 97 % is left."""
    models = {"trained": trained, "pruned": smaller, "pruned and retrained": retrained}
    for ref in models.values():
        manager.wait(manager.evaluate_model(ref, {"image_size": asked.image_size}, device=device).id)
    how = {"image_size": asked.image_size, "batch_size": asked.batch_size, "dtype": asked.dtype, "repeats": 30}
    manager.wait(manager.benchmark_models(list(models.values()), how, device=device).id)
    (timed,) = measurements(manager.store, trained, limit=1)
    before, rows = manager.get_model_metrics(trained), []
    for title, ref in models.items():
        means, ms = manager.get_model_metrics(ref), timed.models[ref]["decode_ms"]
        share = [f"{means[key]:.2f} ({means[key] / before[key]:.1%})" for key in QUALITY if means[key] and before[key]]  # type: ignore[operator]
        parameters = manager.get_model(ref).facts["parameters"] / 1e6
        rows.append([title, f"{parameters:.2f} M", *share, f"{ms:.2f} ms (x{timed.models[trained]['decode_ms'] / ms:.2f})"])
    after = manager.get_model_metrics(retrained)
    kept = all((after[key] or 0) >= KEPT * (before[key] or 0) for key in QUALITY)
    write_section(
        f"Trained for {asked.minutes:g} minutes, pruned, retrained as long ({device})",
        [
            f"`python -m benchmarks.trained_and_pruned --device {device} --variant {asked.variant} --minutes {asked.minutes:g} "
            f"--batch-size {asked.batch_size} --dtype {asked.dtype}` on {machine()}; {timed.settings['device_name']}. `mspacman` at "
            f"{asked.image_size} px, from random weights; 64 test images; the solver was asked for x{wanted:.2f} in the decoder. The "
            f"encoder is held in the second training. At least {KEPT:.0%} of both is {'' if kept else 'not '}left.",
            "",
            *table(["", "parameters", *QUALITY.values(), f"decode, batch {asked.batch_size}"], rows),
        ],
    )


if __name__ == "__main__":
    main()
