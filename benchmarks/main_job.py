"""`make bench`: the main job on the demo model in a fresh store; its comparison goes to `benchmarks/RESULTS.md`."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

from core.compare import METRICS
from core.model_manager import ModelManager
from core.settings import Settings
from core.terminal import demo

RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    """Prunes half of the internal units, retrains by the medium preset, evaluates and benchmarks beside the baseline."""
    settings = Settings()
    with tempfile.TemporaryDirectory() as scratch:
        settings = settings.model_copy(update={"home": Path(scratch), "data_dir": settings.data_folder, "worker_idle_s": 20.0})
        manager = ModelManager(settings=settings)
        found = demo.run(manager, 0.5, quick=False, follow=lambda job: manager.wait(job.id))
    baseline, made = found.models
    lines = [
        "# Measured",
        "",
        f"`make bench` on {platform.machine()}, {found.measurement}; quality on {found.protocol}.",
        "",
        "| figure | baseline | 50 % structured, retrained | change |",
        "|---|---|---|---|",
    ]
    for key, metric in METRICS.items():
        a, b = found.figures[baseline.id][key], found.figures[made.id][key]
        if a.value is not None and b.value is not None:
            change = "" if b.against_baseline is None else f"{b.against_baseline:+.1%}"
            lines.append(f"| {metric.title} | {metric.text(a.value)} | {metric.text(b.value)} | {change} |")
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
