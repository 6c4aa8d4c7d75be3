"""What pruning costs before any retraining: scores and compensation on the demo model, through the jobs that users run."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.fresh import service
from benchmarks.results import machine, table, write_section
from core.model_manager import ModelManager

RATES = (0.3, 0.5, 0.7)
WAYS: dict[str, dict[str, Any]] = {
    "random (control)": {"method": "structured", "score": "random", "compensate": False},
    "L2 magnitude": {"method": "l2_structured"},
    "obs": {"method": "structured", "score": "obs", "compensate": False},
    **{
        f"{score}, fitted": {"method": "structured", "score": score}
        for score in ("l1", "l2", "fpgm", "taylor", "wanda", "qr", "obs")
    },
    **{
        f"{score}, fitted, all pixels alike": {"method": "structured", "score": score, "calibration_foreground_weight": 1.0}
        for score in ("l2", "obs")
    },
    **{
        f"{score}, fitted, ranked over all sites": {"method": "structured", "score": score, "scope": "global"}
        for score in ("lamp", "obs")
    },
}
"""LAMP ranks within a site as L2 does: it differs where sites are ranked together."""
PLAIN = "L2 magnitude"


def main() -> None:
    """Each way at each rate, internal sites, on the pinned test images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    rates = parser.parse_args().rates
    with service() as manager:
        dense = manager.initialize_model("demo", name="demo")
        before = figures(manager, dense.id)
        found = {}
        for rate in rates:
            for way, spec in WAYS.items():
                job = manager.wait(manager.prune_model(dense.id, {**spec, "rate": rate}).id)
                assert job.model_id is not None
                made = manager.get_model(job.model_id)
                smaller = made.facts["parameters"] / dense.facts["parameters"] - 1
                found[way, rate] = (
                    *figures(manager, made.id),
                    smaller,
                    made.facts["decode_macs"] / dense.facts["decode_macs"] - 1,
                )
    rows = []
    for (way, rate), (psnr, foreground, parameters, macs) in found.items():
        plain = found[PLAIN, rate]
        share = [(b - a) / (b - p) for b, a, p in zip(before, (psnr, foreground), plain[:2], strict=True)]
        rows.append(
            [
                f"{rate}",
                way,
                f"{psnr:.2f}",
                f"{foreground:.2f}",
                f"{share[0]:.0%}",
                f"{share[1]:.0%}",
                f"{parameters:+.0%}",
                f"{macs:+.0%}",
            ]
        )
    head = ["rate", "way", "PSNR", "foreground", "of L2's loss", "of L2's foreground loss", "parameters", "decode MACs"]
    command = f".venv/bin/python -m benchmarks.one_shot --rates {' '.join(map(str, rates))}"
    write_section(
        "One shot: pruned, not retrained",
        [
            f"`{command}` on {machine()}. Demo model, mid, hidden and head sites, 64 test images of `mspacman` at 128 px, float32; "
            f"dense {before[0]:.2f} dB, foreground {before[1]:.2f} dB.",
            "",
            *table(head, rows),
        ],
    )


def figures(manager: ModelManager, ref: str) -> tuple[float, float]:
    """PSNR and foreground PSNR."""
    manager.wait(manager.evaluate_model(ref).id)
    means = manager.get_model_metrics(ref)
    return float(means["psnr_db"] or 0), float(means["foreground_psnr_db"] or 0)


if __name__ == "__main__":
    main()
