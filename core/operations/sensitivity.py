"""Sensitivity: what pruning one site (or stage) alone costs in quality, and all of them together, cell by cell.

A cell that is done is never done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import CoreError
from core.operations.context import Context, Outcome
from core.operations.images import open_parts
from core.operations.models import Loaded, load
from core.operations.prune import calibration_images, scores_of
from core.pruning.calibration import CalibrationImages, statistics
from core.pruning.compensation import compensate, fold_alone
from core.pruning.plans import achieved, make_plan, site_rates
from core.pruning.surgery import cut
from core.solver.sensitivity import TOGETHER, Cell, SensitivityTable
from core.specs import PruneSpec, SensitivitySpec
from dcaecore import DCAE, PinnedImages, means, pin, score_psnr, sites, to_uint8

CELLS_NAME = "cells.jsonl"


def run(spec: SensitivitySpec, context: Context) -> Outcome:
    """Internal sites are fitted each from the statistics of the whole model; streams, where asked for, by a fit of all sites."""
    if context.job.parent_model_id is None:
        raise CoreError("Sensitivity needs a model.", code="no_parent")
    parent = load(context.store, context.job.parent_model_id, context.device)
    model, layout = parent.model, parent.model.layout
    model.config.check_image_size(spec.image_size, spec.image_size)
    how = spec.prune.model_copy(update={"rate": max(0.1, spec.rates[0])})
    names = list(site_rates(model.config, how))
    knobs = knobs_of(model, names, spec.granularity)
    (part,) = open_parts(spec.data, spec.image_size, context, "validation")
    pinned = pin(part.cache, part.rows, spec.num_images, skip_broken=spec.data.skip_broken)
    images = calibration_images(how, context, parent)[0] if how.needs_calibration else None
    internal = [name for name in names if sites(model.config)[name].kind != "stream"]
    found = statistics(model, images, internal) if images and internal else {}
    scores = scores_of(how, context, parent, names, images, found)
    fitted = images is not None and how.method == "structured" and how.compensate
    grams = {name: moments.gram for name, moments in found.items()}
    batches = [
        pinned.tensor(start, start + spec.batch_size).to(context.device) for start in range(0, len(pinned), spec.batch_size)
    ]
    with torch.inference_mode():
        latents = [model.encode(x) for x in batches]
    whole = _figures(model.decode, latents, pinned)
    context.log("info", "Whole: " + ", ".join(f"{name} {value:.2f}" for name, value in whole.items()))
    known = {(cell.knob, cell.rate): cell for cell in _read(context.folder / CELLS_NAME)}
    if known:
        context.log("info", f"{len(known)} cells of an earlier attempt are kept.")

    def measured(knob: str, rate: float, places: Sequence[str]) -> Cell:
        alone = {name: rate if name in places else 0.0 for name in names}
        plan = make_plan(model.config, layout, scores, how.model_copy(update={"site_rates": alone}))
        state = _pruned_state(parent, plan.keep, {} if knob == TOGETHER else grams, images if fitted else None, how)
        result = cut(state, model.config, layout, plan.keep, exact_norms=how.stream_norms == "exact")
        candidate = DCAE(model.config, result.layout).to(context.device).eval()
        candidate.load_state_dict(result.state)
        # What goes before the decoder is the whole model's where only the decoder was pruned.
        half = all(sites(model.config)[name].coder == "decoder" for name in places)
        figures = _figures(candidate.decode, latents, pinned) if half else _figures(candidate, batches, pinned)
        return Cell(knob, rate, achieved(model.config, layout, plan), figures)

    every = {**knobs, TOGETHER: tuple(names)} if len(knobs) > 1 else knobs
    cells: list[Cell] = []
    total = len(every) * len(spec.rates)
    with (context.folder / CELLS_NAME).open("a") as file:
        for knob, places in every.items():
            for rate in spec.rates:
                context.check()
                context.progress(0.1 + 0.9 * len(cells) / total, f"{knob} at {rate:g} ({len(cells)} of {total})")
                cell = known.get((knob, rate))
                if cell is None:
                    cell = measured(knob, rate, places)
                    file.write(json.dumps([knob, rate, cell.share, cell.figures]) + "\n")
                    file.flush()
                cells.append(cell)
    alone = tuple(cell for cell in cells if cell.knob != TOGETHER)
    together = tuple(cell for cell in cells if cell.knob == TOGETHER)
    protocol = {
        "images_sha256": pinned.digest,
        "num_images": len(pinned),
        "image_size": spec.image_size,
        "source": f"{spec.data.kind}:{spec.data.location}",
        "split": "validation",
    }
    table = SensitivityTable(parent.row.id, layout.digest(), protocol, knobs, whole, alone, together)
    digest = context.store.blobs.put_bytes(json.dumps(table.to_json(), sort_keys=True).encode())
    return Outcome(result={"table_digest": digest, "cells": len(cells), "whole": whole})


def knobs_of(model: DCAE, names: list[str], granularity: str) -> dict[str, tuple[str, ...]]:
    """What is pruned at once: each site, or the sites of one kind of a stage."""
    if granularity == "site":
        return {name: (name,) for name in names}
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        site = sites(model.config)[name]
        knob = f"{site.coder}.stages.{site.stage}.{site.kind}"
        found[knob] = (*found.get(knob, ()), name)
    return found


def _pruned_state(
    parent: Loaded,
    keep: Mapping[str, tuple[int, ...]],
    grams: dict[str, np.ndarray],
    images: CalibrationImages | None,
    how: PruneSpec,
) -> dict:
    """Weights of the dense shape with the fit folded in; as they are where nothing is fitted. Without moments, all is fitted in turn."""
    model = parent.model
    if images is None:
        return model.state_dict()
    if all(name in grams for name in keep):
        return fold_alone(model, keep, grams, parent.masks)
    return compensate(model, keep, images, masks=parent.masks, exact_norms=how.stream_norms == "exact")


@torch.inference_mode()
def _figures(call: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], pinned: PinnedImages) -> dict[str, float]:
    output = np.concatenate([to_uint8(call(x)) for x in inputs])
    return means(score_psnr(output, pinned))


def _read(path: Path) -> Iterator[Cell]:
    """The cells that an earlier attempt finished; a line that a kill cut off is none."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            knob, rate, share, figures = json.loads(line)
        except ValueError:
            continue
        yield Cell(knob, rate, share, figures)
