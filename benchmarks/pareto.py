"""Quality against latency: two ways of pruning at six ratios, each retrained alike, and the Pareto front of what came out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.fast_decoder import RECIPE
from benchmarks.fresh import service
from benchmarks.results import machine, table, write_section
from core.choice import pareto_front
from core.model_manager import ModelManager
from core.report.chart import svg
from core.report.document import Chart, Point
from store.jobs import list_jobs
from store.scores import measurements

WAYS: dict[str, dict[str, Any]] = {
    "obs, fitted": {"method": "structured", "score": "obs"},
    "plain L2": {"method": "structured", "score": "l2", "compensate": False},
}
RATIOS: dict[str, dict[str, float]] = {
    "GLUs 1/2": {"hidden": 0.5, "mid": 0.0, "heads": 0.0, "stream": 0.0},
    "inner 1/2, GLUs 3/4": {"hidden": 0.75, "stream": 0.0},
    "and fine streams 1/4": {"hidden": 0.75, "decoder.fine.stream": 0.25, "decoder.deep.stream": 0.0},
    "and fine streams 1/2": {"hidden": 0.75, "decoder.fine.stream": 0.5, "decoder.deep.stream": 0.0},
    "and all streams 1/2": {"hidden": 0.75, "stream": 0.5},
    "inner 3/4, GLUs 7/8, all streams 1/2": {"hidden": 0.875, "mid": 0.75, "heads": 0.75, "stream": 0.5},
}
STEPS = 600
BATCH = 8
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
QUALITY = {"psnr_db": "PSNR (dB)", "foreground_psnr_db": "Foreground PSNR (dB)"}


def main() -> None:
    """Prunes the decoder, retrains it with the encoder held, evaluates; then one interleaved benchmark of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="Where the store stays, to be looked at in the workbench, and to go on from.")
    kept = parser.parse_args().home
    with service(kept) as manager:
        dense = manager.initialize_model("demo", name="demo").id
        manager.wait(manager.evaluate_model(dense).id)
        done = {job.name: job.model_id for job in list_jobs(manager.store, ("done",), operations=("retrain",))}
        made = {}
        for ratio in RATIOS:
            for way in WAYS:
                title = f"{ratio}: {way}"
                made[title] = done.get(title) or make(manager, dense, title, {**WAYS[way], "site_rates": RATIOS[ratio]})
                if manager.get_model_metrics(made[title])["psnr_db"] is None:
                    manager.wait(manager.evaluate_model(made[title]).id)
        report(manager, dense, made, sum(title in done for title in made))


def make(manager: ModelManager, dense: str, title: str, how: dict[str, Any]) -> str:
    """The retrained model."""
    how = {"part": "decoder", "kinds": ["mid", "hidden", "heads", "stream"], "rate": 0.5, **how}
    retrain = {**RECIPE, "n_epochs": STEPS // 50, "steps_per_epoch": 50}
    pruned = manager.prune_model(dense, how)
    trained = manager.retrain_model({"job": pruned.id}, retrain, name=title)
    return str(manager.wait(trained.id).model_id)


def report(manager: ModelManager, dense: str, made: dict[str, str], earlier: int) -> None:
    """The section, from the store; `earlier` models were retrained by a run before this one."""
    refs = {"dense": dense, **made}
    manager.wait(manager.benchmark_models(list(refs.values()), {"batch_size": BATCH, "repeats": 20}).id)
    (timed,) = measurements(manager.store, dense, limit=1)
    points = {}
    for title, ref in refs.items():
        means = manager.get_model_metrics(ref)
        points[title] = (timed.models[ref]["decode_ms"], means["psnr_db"], means["foreground_psnr_db"])
    fronts = [set(pareto_front({t: (p[0], p[place]) for t, p in points.items()}, (False, True)).best) for place in (1, 2)]
    slowest_first = sorted(points.items(), key=lambda item: -item[1][0])
    for place, (key, name) in enumerate(QUALITY.items(), start=1):
        shown = [
            Point(str(number), ms, values[place - 1], title in fronts[place - 1])
            for number, (title, (ms, *values)) in enumerate(slowest_first)
        ]
        draw(f"front-{key.removesuffix('_db').replace('_', '-')}", Chart(f"Decode (ms, batch {BATCH})", name, tuple(shown)))
    rows = []
    for number, (title, (ms, psnr, foreground)) in enumerate(slowest_first):
        parameters = manager.get_model(refs[title]).facts["parameters"] / manager.get_model(dense).facts["parameters"] - 1
        on = [name for name, front in zip(("PSNR", "foreground"), fronts, strict=True) if title in front]
        speed = points["dense"][0] / ms
        rows.append(
            [
                str(number),
                title,
                f"{ms:.1f} ms",
                f"x{speed:.2f}",
                f"{psnr:.2f}",
                f"{foreground:.2f}",
                f"{parameters:+.1%}",
                ", ".join(on),
            ]
        )
    write_section(
        "Quality against latency",
        [
            f"`.venv/bin/python -m benchmarks.pareto` on {machine()}. Demo model, `mspacman`, 128 px, float32, only the decoder pruned; "
            f"each retrained for {STEPS} steps of batch {RECIPE['batch_size']} with the encoder held; quality on 64 test images; decode "
            f"at batch {BATCH}, median of 20 interleaved repeats. With `--home` the store stays, and Compare draws the same front."
            + (f" {earlier} of the models were retrained by an earlier run, and timed anew." if earlier else ""),
            "",
            "Numbers are those of the table below; points on the front are filled.",
            "",
            "![PSNR against decode latency](../docs/pictures/front-psnr.svg)",
            "",
            "![Foreground PSNR against decode latency](../docs/pictures/front-foreground-psnr.svg)",
            "",
            *table(["#", "", "decode", "speed", "PSNR", "foreground", "parameters", "on the front of"], rows),
        ],
    )


def draw(name: str, chart: Chart) -> None:
    """The chart as a picture of the documentation, on a ground of its own."""
    text = svg(chart)
    opening = text.index(">") + 1
    (PICTURES / f"{name}.svg").write_text(f'{text[:opening]}\n<rect width="100%" height="100%" fill="#ffffff"/>{text[opening:]}')


if __name__ == "__main__":
    main()
