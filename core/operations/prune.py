"""Prune: a parent and a spec make a smaller model (structured, cut) or a sparser one (structured, masked; unstructured; 2:4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from core.errors import CoreError
from core.kept_plans import maker_of, plan_for
from core.names import pruned_name
from core.operations.context import Context, Outcome
from core.operations.images import open_parts
from core.operations.models import Loaded, load, new_model
from core.pruning.calibration import (
    CalibrationImages,
    SiteStatistics,
    draw,
    gradients,
    images_needed,
    number_of_images,
    statistics,
)
from core.pruning.compensation import compensate
from core.pruning.masks import combine, prune_weights, shapes_of, two_four
from core.pruning.plans import Plan, achieved, kept_count, make_plan, site_rates
from core.pruning.prunable import check_two_four, prunable
from core.pruning.scores import STATISTICS_SCORES, Scores, rank_zeros_last, score_units
from core.pruning.surgery import CutResult, cut, unit_masks
from core.specs import STRUCTURED_METHODS, PruneSpec
from dcaecore import BatchStream, sites
from store import NewModel

CALIBRATION_BATCH = 8


def run(spec: PruneSpec, context: Context) -> Outcome:
    """Scores, plans and applies; the rate is relative to the parent."""
    if context.job.parent_model_id is None:
        raise CoreError("Pruning needs a parent model.", code="no_parent")
    parent = load(context.store, context.job.parent_model_id)
    context.progress(0.2, "scoring", force=True)
    name = context.job.name if context.job.name != "prune" else pruned_name(parent.row.family, spec)
    made, result = (_structured if spec.method in STRUCTURED_METHODS else _unstructured)(spec, context, parent, name)
    context.check()
    return Outcome(model=made, result=result)


def _structured(spec: PruneSpec, context: Context, parent: Loaded, name: str) -> tuple[NewModel, dict]:
    model = parent.model.to(context.device)
    kept = None if spec.plan is None else plan_for(context.store, spec, parent.row)
    images, dataset = calibration_images(spec, context, parent, kept) if spec.needs_calibration else (None, None)
    if kept is None:
        scores = scores_of(spec, context, parent, list(site_rates(model.config, spec)), images)
        plan = make_plan(model.config, model.layout, scores, spec, parent=parent.row.id)
    else:
        plan = replace(kept, parent=parent.row.id)
    share = achieved(model.config, model.layout, plan)
    state, exact = model.state_dict(), spec.stream_norms == "exact"
    if images is not None and spec.method == "structured" and spec.compensate:

        def report(fraction: float) -> None:
            context.check()
            context.progress(0.5 + 0.4 * fraction, "folding removed units into the kept ones")

        context.log("info", f"Fitting on {images.count} calibration images.")
        state = compensate(model, plan.keep, images, masks=parent.masks, exact_norms=exact, progress=report)
    context.progress(0.9, "cutting" if spec.apply == "cut" else "masking", force=True)
    if spec.apply == "cut":
        result = cut(state, model.config, model.layout, plan.keep, masks=parent.masks, exact_norms=exact)
    else:
        masks = combine(parent.masks, unit_masks(state, model.config, model.layout, plan.keep))
        result = CutResult(state, masks, model.layout.hold(model.config, plan.keep))
    for site, units in plan.keep.items():
        context.log("info", f"{site}: {len(units)} of {model.layout.width(sites(model.config)[site])} units kept")
    digest = context.store.blobs.put_bytes(json.dumps(plan.to_json(), sort_keys=True).encode())
    asked = f"Asked for {spec.rate}" if kept is None else f"By plan {kept.id}"
    context.log("info", f"{asked}, removed {share:.4f} of the units.")
    made = new_model(
        context.store,
        name=name,
        kind="pruned",
        spec=spec,
        state={name: value.cpu() for name, value in result.state.items()},
        config=model.config,
        layout=result.layout,
        masks={name: mask for name, mask in result.masks.items() if not mask.all()},
        parents=[("parent", parent.row.id), *([] if spec.plan is None else [("plan", maker_of(context.store, spec.plan).id)])],
        dataset=dataset,
    )
    return made, {"plan": plan.id, "plan_digest": digest, "achieved_rate": share}


def calibration_images(
    spec: PruneSpec, context: Context, parent: Loaded, kept: Plan | None = None
) -> tuple[CalibrationImages, dict]:
    """As many as the spec asks for or needs (by its rates, or by the plan), and the identity of the data set that they are from."""
    config, layout, size = parent.model.config, parent.model.layout, spec.calibration_size
    config.check_image_size(size, size)
    fitted = _fitted(spec, parent, kept) if spec.compensate or spec.score in STATISTICS_SCORES else {}
    count = number_of_images(spec.calibration_images, images_needed(config, layout, fitted, size))
    (part,) = open_parts(spec.calibration_data, size, context, "train")
    stream = BatchStream(
        part.cache,
        part.rows,
        batch_size=min(CALIBRATION_BATCH, count),
        seed=spec.seed,
        skip_broken=spec.calibration_data.skip_broken,
    )
    images = draw(stream, count, spec.calibration_foreground_weight)
    return images, {**part.frames.identity(part.rows), "image_size": size, "seed": spec.seed}


def _fitted(spec: PruneSpec, parent: Loaded, kept: Plan | None) -> dict[str, int]:
    """Sites whose features are fitted, with the units that take part: all that may be kept where sites are ranked together."""
    config, layout = parent.model.config, parent.model.layout
    rates = {} if kept is not None else site_rates(config, spec)
    pruned = rates if kept is None else kept.keep
    internal = [name for name, site in sites(config).items() if site.kind != "stream"]
    chosen = internal if any(name not in internal for name in pruned) else [name for name in internal if name in pruned]
    widths = {name: layout.width(sites(config)[name]) for name in chosen}
    if kept is not None:
        return {name: len(kept.keep.get(name, range(width))) for name, width in widths.items()}
    if spec.scope != "local":
        return widths
    return {name: kept_count(width, rates.get(name, 0.0)) for name, width in widths.items()}


def scores_of(
    spec: PruneSpec,
    context: Context,
    parent: Loaded,
    names: list[str],
    images: CalibrationImages | None,
    found: Mapping[str, SiteStatistics] | None = None,
) -> Scores:
    """Scores of the named sites by the spec's method; `found` are the internal sites' statistics, where they are known already."""
    model = parent.model
    score = spec.score if spec.method == "structured" else "l2"
    context.progress(0.2, f"scoring by {score}", force=True)
    pull = None
    known = sites(model.config)
    internal = [name for name in names if known[name].kind != "stream"]
    if found is None and images is not None and internal and score in STATISTICS_SCORES:
        found = statistics(model, images, internal)
    if images is not None and (score == "taylor" or (score in STATISTICS_SCORES and len(internal) < len(names))):
        if score != "taylor":
            context.log("info", f"No layer alone reads a residual stream: streams are scored by taylor, the rest by {score}.")
        pull = gradients(model, images, foreground_weight=spec.calibration_foreground_weight)
    scores = score_units(model, score, statistics=found or {}, gradients=pull, seed=spec.seed, names=names)
    return rank_zeros_last(scores, model.state_dict(), model.config, model.layout)


def _unstructured(spec: PruneSpec, context: Context, parent: Loaded, name: str) -> tuple[NewModel, dict]:
    model, state = parent.model, parent.model.state_dict()
    names = prunable(shapes_of(state), spec.part)
    before = sum(int((state[n] != 0).sum()) for n in names)
    if spec.method == "two_four":
        masks = _two_four(spec, context, parent)
        zeroed = sum(int((state[n] != 0)[~mask].sum()) for n, mask in masks.items())
    else:
        masks = prune_weights(state, spec.method, rate=spec.rate, threshold=spec.threshold, part=spec.part)
        zeroed = before - sum(int(mask.sum()) for mask in masks.values())
    context.log("info", f"{zeroed:,} of {before:,} non-zero weights in {len(names)} tensors set to zero.")
    made = new_model(
        context.store,
        name=name,
        kind="pruned",
        spec=spec,
        state=state,
        config=model.config,
        layout=model.layout,
        masks=combine(parent.masks, masks),
        parents=[("parent", parent.row.id)],
    )
    return made, {"zeroed_weights": zeroed, "prunable_weights": before, "achieved_rate": zeroed / before}


def _two_four(spec: PruneSpec, context: Context, parent: Loaded) -> dict[str, Tensor]:
    """Masks of the layers that can take 2:4; the others are refused by name, or named in the log."""
    state = parent.model.state_dict()
    whole, masks = check_two_four(shapes_of(state), spec), two_four(state, part=spec.part)
    if whole:
        context.log(
            "info", f"{len(whole)} layers stay whole, for their input channels do not divide by four: {', '.join(whole)}."
        )
    if not any(bool((state[name] != 0)[~mask].any()) for name, mask in masks.items()):
        raise CoreError("No weight would be pruned: the model is 2:4 already.", code="nothing_to_prune", next="Prune otherwise.")
    return masks
