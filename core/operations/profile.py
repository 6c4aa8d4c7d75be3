"""Profile: each block's latency over a grid of widths, and whole models of other widths that say how well the sums predict.

The blocks of a stage are alike, so one of each is timed. Of two neighbouring stages one has the first, the other the second of each
pair of rates, and units go by the neighbour's rate: so every pair of widths that a block or a resampling layer can have is met by
as many layouts as there are pairs. Weights are random: latency does not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from core.errors import CoreError
from core.operations.clock import conditions, seconds
from core.operations.context import Context, Outcome
from core.operations.models import load
from core.pruning.plans import kept_count
from core.solver.latency import LatencyTable, Widths, coder_of, fit, group_of
from core.specs import ProfileSpec
from dcaecore import DCAE, DCAEConfig, Layout, sites
from dcaecore.cost import module_costs

LEAST_S = 5e-4
"""A shorter block runs several times in a row, so that the clock can tell."""
WARMUP = 2
VERBS = {"encoder": "encode", "decoder": "decode"}


def run(spec: ProfileSpec, context: Context) -> Outcome:
    """Blocks first, a group at a time, its widths interleaved; then whole models, each beside the one that is profiled."""
    if context.job.parent_model_id is None:
        raise CoreError("A profile needs a model.", code="no_parent")
    model = load(context.store, context.job.parent_model_id).model
    config, layout = model.config, model.layout
    config.check_image_size(spec.image_size, spec.image_size)
    coders = ("encoder", "decoder") if spec.part == "both" else (spec.part,)
    points = _points(config, layout, spec)
    wanted = [group for group in points if coder_of(group) in coders]
    groups: dict[str, dict[Widths, float]] = {}
    for place, group in enumerate(wanted):
        context.check()
        context.progress(0.6 * place / len(wanted), f"{group} ({place} of {len(wanted)})")
        groups[group] = _time_group(points.pop(group), spec, context.device)
    protocol = conditions(spec, context.device)
    table = LatencyTable(protocol, config.to_json(), groups)
    offset, scale, checks = _whole_models(table, config, layout, coders, spec, context)
    table = LatencyTable(protocol, config.to_json(), groups, offset, scale, tuple(checks))
    errors = {coder: table.error(coder) for coder in coders}
    for coder, error in errors.items():
        context.log("info", f"{coder}: mean error {error:.1%} over {spec.check_models} models that it was not fitted on.")
    digest = context.store.blobs.put_bytes(json.dumps(table.to_json(), sort_keys=True).encode())
    return Outcome(result={"table_digest": digest, "errors": errors, **protocol})


def _thinned(config: DCAEConfig, layout: Layout, rate_of: Mapping[str, float]) -> Layout:
    known = sites(config)
    return layout.compose(config, {name: range(kept_count(layout.width(known[name]), rate)) for name, rate in rate_of.items()})


@dataclass(frozen=True)
class Block:
    """A module on the meta device, and the side of its output."""

    module: nn.Module
    side: int


def _points(config: DCAEConfig, layout: Layout, spec: ProfileSpec) -> dict[str, dict[Widths, Block]]:
    """Group -> widths -> a block of these widths."""
    rates = (0.0, *spec.rates)
    streams = rates if spec.streams else (0.0,)
    found: dict[str, dict[Widths, Block]] = {}
    for first in rates:
        for second in rates:
            chosen = {}
            for name, site in sites(config).items():
                own, other = (first, second) if site.stage % 2 == 0 else (second, first)
                chosen[name] = (own if own in streams else 0.0) if site.kind == "stream" else other
            thin = _thinned(config, layout, chosen)
            with torch.device("meta"):
                skeleton = DCAE(config, thin)
            for row in module_costs(config, thin, spec.image_size):
                module = skeleton.get_submodule(row.name)
                found.setdefault(group_of(row), {}).setdefault(row.widths, Block(module, row.side))
    return found


def _materialised(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A module on the meta device, with small random weights on a real one."""
    for part in module.modules():
        for key, value in part._parameters.items():
            if value is not None:
                part._parameters[key] = nn.Parameter(torch.randn(value.shape, device=device, dtype=dtype) * 0.02)
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = torch.ones(buffer.shape, device=device, dtype=dtype) if buffer.is_meta else buffer.to(device)
    return module.eval()


@torch.inference_mode()
def _time_group(points: Mapping[Widths, Block], spec: ProfileSpec, device: str) -> dict[Widths, float]:
    """Least milliseconds by widths; every repeat runs all of them, each time beginning with another.

    The least, not the median: whatever else runs only ever adds to a block of half a millisecond.
    """
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    calls: list[Callable[[], Any]] = []
    for block in points.values():
        module = _materialised(block.module, device, dtype)
        x = torch.randn(_input_shape(module, block.side, spec.batch_size), device=device, dtype=dtype)
        calls.append(partial(module, x))
    for _ in range(WARMUP):
        guesses = [seconds(call, device) for call in calls]
    inner = [max(1, min(50, round(LEAST_S / guess))) for guess in guesses]
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(spec.repeats):
        for place in _turned(len(calls), repeat):
            times[place].append(seconds(calls[place], device, inner[place]))
    return {widths: min(own) * 1e3 for widths, own in zip(points, times, strict=True)}


def _turned(count: int, turn: int) -> Iterator[int]:
    return ((place + turn) % count for place in range(count))


def _input_shape(module: nn.Module, side_out: int, batch_size: int) -> tuple[int, int, int, int]:
    """`(B, C, H, W)` that a block, a resampling layer, a convolution or a norm reads."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    kind = type(module).__name__
    side = {"Upsample": side_out // 2, "Downsample": side_out * 2}.get(kind, side_out)
    if convolutions:
        return batch_size, convolutions[0].in_channels, side, side
    weight = next(module.parameters())
    return batch_size, len(weight), side, side


@torch.inference_mode()
def _whole_models(
    table: LatencyTable, config: DCAEConfig, layout: Layout, coders: tuple[str, ...], spec: ProfileSpec, context: Context
) -> tuple[dict[str, float], dict[str, float], list[dict[str, Any]]]:
    """Offset and scale by coder, and the checks. Each model is timed beside the profiled one: a slow machine slows both."""
    generator = np.random.default_rng(spec.seed)
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    x = torch.randn(spec.batch_size, config.in_channels, spec.image_size, spec.image_size, device=context.device, dtype=dtype)
    dense = DCAE(config, layout).to(context.device, dtype).eval()
    inputs = {"encoder": x, "decoder": dense.encode(x)}
    count = spec.fit_models + spec.check_models
    layouts, ratios = [layout], {coder: [1.0] for coder in coders}
    whole: dict[str, list[float]] = {coder: [] for coder in coders}
    for number in range(1, count):
        context.check()
        context.progress(0.6 + 0.4 * number / count, f"whole models ({number} of {count})")
        top = max(spec.rates)
        rates = {name: generator.uniform(0.0, top) for name in sites(config)}
        if not spec.streams:
            rates = {name: rate for name, rate in rates.items() if sites(config)[name].kind != "stream"}
        layouts.append(_thinned(config, layout, rates))
        other = DCAE(config, layouts[-1]).to(context.device, dtype).eval()
        for coder in coders:
            calls = [partial(getattr(one, VERBS[coder]), inputs[coder]) for one in (dense, other)]
            times = np.array([[seconds(calls[k], context.device) for k in range(2)] for _ in range(WARMUP + spec.repeats)])
            times = times[WARMUP:]
            ratios[coder].append(float(np.median(times[:, 1]) / np.median(times[:, 0])))
            whole[coder].append(float(np.median(times[:, 0])))
    offset, scale, checks = {}, {}, []
    for coder in coders:
        measured = np.array(ratios[coder]) * float(np.median(whole[coder])) * 1e3
        sums = np.array([table.sum_of_blocks(config, one, coder) for one in layouts])
        offset[coder], scale[coder] = fit(sums[: spec.fit_models], measured[: spec.fit_models])
        for total, found in zip(sums[spec.fit_models :], measured[spec.fit_models :], strict=True):
            predicted = offset[coder] + scale[coder] * float(total)
            checks.append({"coder": coder, "predicted_ms": predicted, "measured_ms": float(found)})
    return offset, scale, checks
