"""What pruning and storing a full-size DC-AE takes on the CPU: the f32c32 shape with random weights, no training, no images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import machine, table, write_section
from core.pruning.masks import apply_masks, shapes_of, smallest
from core.pruning.plans import make_plan
from core.pruning.prunable import prunable
from core.pruning.scores import rank_zeros_last, score_units
from core.pruning.surgery import cut
from core.specs import PruneSpec
from dcaecore import DCAE, VARIANTS, Layout, load_model, save_model, sites

VARIANT = "dc-ae-f32c32-sana-1.0"
REPEATS = 3


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Least seconds of a few runs, and what the last one gave."""
    least = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = call()
        least = min(least, time.perf_counter() - started)
    return least, found


def main() -> None:
    """Score, plan and cut; one exact threshold over all weights; files dense and masked."""
    torch.manual_seed(0)
    config = VARIANTS[VARIANT]
    model = DCAE(config).eval()
    state, layout = dict(model.state_dict()), Layout()
    names = [name for name, site in sites(config).items() if site.kind != "stream"]

    def prune() -> Any:
        scores = rank_zeros_last(score_units(model, "l2", names=names), state, config, layout)
        return cut(state, config, layout, make_plan(config, layout, scores, PruneSpec(rate=0.5)).keep)

    rows = []
    seconds, smaller = timed(prune)
    left = sum(value.numel() for value in smaller.state.values()) / sum(value.numel() for value in state.values())
    rows.append(["score (L2), plan and cut at 0.5, internal sites", f"{seconds:.2f} s", f"{left:.1%} of the parameters are left"])
    weights = {name: state[name] for name in prunable(shapes_of(state))}
    total = sum(value.numel() for value in weights.values())
    seconds, _ = timed(lambda: smallest(weights, total // 2))
    rows.append(
        ["exact threshold over all weights at 0.5, without concatenating", f"{seconds:.2f} s", f"{total / 1e6:.0f} M weights"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        dense = Path(scratch) / "dense.safetensors"
        save_model(dense, state, config=config, layout=layout)
        size = dense.stat().st_size
        reading, _ = timed(dense.read_bytes)
        loading, _ = timed(lambda: load_model(dense))
        rows.append(["load the dense file", f"{loading:.2f} s", f"{size / 1e6:.0f} MB; reading its bytes alone {reading:.2f} s"])
        for sparsity in (0.5, 0.9):
            masks = smallest(weights, round(sparsity * total))
            masked, path = apply_masks(state, masks), Path(scratch) / f"{sparsity}.safetensors"
            write = partial(save_model, path, masked, config=config, layout=layout, masks=masks)
            saving, _ = timed(write)
            loading, found = timed(partial(load_model, path))
            same = all(torch.equal(value, masked[name]) for name, value in found.model.state_dict().items())
            assert same, "what is stored comes back bit by bit"
            share = path.stat().st_size / size
            rows.append(
                [
                    f"masked file at {sparsity:.0%} sparsity",
                    f"{share:.1%} of the dense bytes",
                    f"save {saving:.1f} s, load {loading:.1f} s, bit-equal",
                ]
            )
    write_section(
        "A full-size model on the CPU",
        [
            f"`.venv/bin/python -m benchmarks.large_model` on {machine()}. `{VARIANT}`, {total / 1e6:.0f} M prunable weights, random, "
            f"float32; least of {REPEATS} runs.",
            "",
            *table(["what", "measured", "of"], rows),
        ],
    )


if __name__ == "__main__":
    main()
