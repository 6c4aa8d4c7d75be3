"""What asking the system for memory costs on a CPU: decoders of the presets' shapes in processes that give freed memory back or keep it."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.results import machine, table, write_section
from core.jobs.allocator import keep_memory
from core.presets import PRESETS
from core.pruning.plans import predicted_layout
from dcaecore import DCAE, DEMO_FILE, read_header
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout

SIDES = {"decode": (128, 256, 512), "training step": (128, 256)}
SHAPES = ("dense", "medium", "aggressive")
BATCH = 8
REPEATS = 7
ROUNDS = 2
"""Processes of each kind, in turn."""


def main() -> None:
    """Each process runs all shapes in turn; medians of the processes' medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--process", nargs=3, metavar=("WHAT", "SIDE", "KEEPS"), help=argparse.SUPPRESS)
    asked = parser.parse_args().process
    if asked is not None:
        sys.stdout.write(json.dumps(measured(asked[0], int(asked[1]), keeps=asked[2] == "keeps")))
        return
    rows = []
    for what, sides in SIDES.items():
        for side in sides:
            found: dict[str, list[dict[str, Any]]] = {"gives": [], "keeps": []}
            for _ in range(ROUNDS):
                for way, runs in found.items():
                    command = [sys.executable, "-m", "benchmarks.memory", "--process", what, str(side), way]
                    runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            rows += [[f"{what}, {side} px", *row(way, runs)] for way, runs in found.items()]
    write_section(
        "Memory that a CPU process keeps",
        [
            f"`.venv/bin/python -m benchmarks.memory` on {machine()}. Decoders of the presets' shapes, random weights, batch {BATCH}, "
            f"float32; medians of {ROUNDS} processes of {REPEATS} interleaved repeats, and the dense model's least and most of them. Every "
            "job's process keeps freed memory. Page faults are those of all shapes' runs, divided by their number.",
            "",
            *table(["", "freed memory", *SHAPES, "page faults a run", "peak memory"], rows),
        ],
    )


def row(way: str, runs: list[dict[str, Any]]) -> list[str]:
    """The cells of one way's processes."""
    median = {shape: float(np.median([run["ms"][shape] for run in runs])) for shape in SHAPES}
    dense = [run["ms"]["dense"] for run in runs]
    faults, peak = (float(np.median([run[key] for run in runs])) for key in ("faults", "peak_mb"))
    return [
        "kept" if way == "keeps" else "given back",
        f"{median['dense']:.0f} ms ({min(dense):.0f} to {max(dense):.0f})",
        *(f"{median[shape]:.0f} ms (x{median['dense'] / median[shape]:.2f})" for shape in SHAPES[1:]),
        f"{faults:,.0f}",
        f"{peak:,.0f} MB",
    ]


def measured(what: str, side: int, *, keeps: bool) -> dict[str, Any]:
    """Median milliseconds by shape, page faults a run, peak resident megabytes of this process."""
    if keeps and not keep_memory():
        raise SystemExit("This machine's C library has no such setting.")
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    header = read_header(DEMO_FILE)
    config, layout = DCAEConfig.from_json(header["config"]), Layout.from_json(header["layout"])
    layouts = [layout, *(predicted_layout(config, layout, PRESETS[name].prune) for name in SHAPES[1:])]
    models = [DCAE(config, one).eval() for one in layouts if one is not None]
    with torch.inference_mode():
        latents = models[0].encode(torch.randn(BATCH, 3, side, side))
    calls = [decoding(model, latents) if what == "decode" else training(model, latents.clone()) for model in models]
    times: list[list[float]] = [[] for _ in calls]
    before = 0
    for repeat in range(REPEATS + 1):
        if repeat == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for call, own in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            own.append(time.perf_counter() - started)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": {shape: float(np.median(own[1:])) * 1e3 for shape, own in zip(SHAPES, times, strict=True)},
        "faults": (used.ru_minflt - before) / (REPEATS * len(calls)),
        "peak_mb": used.ru_maxrss / 1024,
    }


def decoding(model: DCAE, latents: torch.Tensor) -> Callable[[], None]:
    """A batch's decode."""

    @torch.inference_mode()
    def run() -> None:
        model.decode(latents)

    return run


def training(model: DCAE, latents: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of the decoder."""

    def run() -> None:
        model.decode(latents).square().mean().backward()
        model.zero_grad()

    return run


if __name__ == "__main__":
    main()
