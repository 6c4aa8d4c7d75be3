"""The main job on the demo model in a fresh store: half of the units go, then it is retrained and compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.fresh import service
from benchmarks.results import machine, table, write_section
from core.compare import METRICS
from core.presets import PRESETS
from core.terminal import demo


def main() -> None:
    """Prunes by the medium preset, retrains, evaluates and benchmarks beside the baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="Where the store stays; else it goes with the run.")
    kept = parser.parse_args().home
    with service(kept) as manager:
        found = demo.run(manager, 0.5, quick=False, follow=lambda job: manager.wait(job.id))
        (trained,) = (job for job in manager.jobs(limit=20) if job.operation == "retrain")
    baseline, made = found.models
    rows = []
    for key, metric in METRICS.items():
        a, b = found.figures[baseline.id][key], found.figures[made.id][key]
        if b.value is not None:
            change = "" if b.against_baseline is None else f"{b.against_baseline:+.1%}"
            rows.append([metric.title, metric.text(a.value), metric.text(b.value), change])
    assert found.protocol is not None and found.measurement is not None
    p, m = found.protocol, found.measurement
    retrain = PRESETS["medium"].retrain
    write_section(
        "The main job",
        [
            f"`.venv/bin/python -m benchmarks.main_job` on {machine()}.",
            f"Quality: {p['num_images']} test images of {p['source']}, {p['image_size']} px, {p['dtype']}. Latency: {m['dtype']}, "
            f"{m['image_size']} px, batch {m['batch_size']}, median of {m['repeats']} interleaved repeats. Retrained for "
            f"{retrain.total_steps} steps of batch {retrain.batch_size} at {trained.result['step_s']:.2f} s a step.",
            "",
            *table(["figure", "baseline", "medium preset", "change"], rows),
        ],
    )


if __name__ == "__main__":
    main()
