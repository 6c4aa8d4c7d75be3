"""Prune: a parent and a spec make a smaller model (structured) or a sparser one (unstructured)."""

from __future__ import annotations

import json

from core.errors import CoreError
from core.names import model_name
from core.operations.context import Context, Outcome
from core.operations.models import Loaded, load, new_model
from core.pruning.masks import apply_masks, prunable, prune_weights
from core.pruning.plans import achieved, make_plan
from core.pruning.scores import l2_scores
from core.pruning.surgery import cut
from core.specs import UNSTRUCTURED_METHODS, PruneSpec
from store import NewModel


def run(spec: PruneSpec, context: Context) -> Outcome:
    """Scores, plans and applies; the rate is relative to the parent."""
    if context.job.parent_model_id is None:
        raise CoreError("Pruning needs a parent model.", code="no_parent")
    parent = load(context.store, context.job.parent_model_id)
    context.progress(0.2, "scoring", force=True)
    name = context.job.name if context.job.name != "prune" else model_name(parent.row.family, spec.method, spec.rate)
    made, result = (_unstructured if spec.method in UNSTRUCTURED_METHODS else _structured)(spec, context, parent, name)
    context.check()
    return Outcome(model=made, result=result)


def _structured(spec: PruneSpec, context: Context, parent: Loaded, name: str) -> tuple[NewModel, dict]:
    model = parent.model
    plan = make_plan(model.config, model.layout, l2_scores(model), spec, parent=parent.row.id)
    share = achieved(model.config, model.layout, plan)
    context.progress(0.5, "cutting", force=True)
    result = cut(model.state_dict(), model.config, model.layout, plan.keep, masks=parent.masks)
    for site, units in plan.keep.items():
        context.log("info", f"{site}: {len(units)} units kept")
    digest = context.store.blobs.put_bytes(json.dumps(plan.to_json(), sort_keys=True).encode())
    context.log("info", f"Asked for {spec.rate}, removed {share:.4f} of the units.")
    made = new_model(
        context.store,
        name=name,
        kind="pruned",
        spec=spec,
        state=result.state,
        config=model.config,
        layout=result.layout,
        masks=result.masks,
        parents=[("parent", parent.row.id)],
    )
    return made, {"plan": plan.id, "plan_digest": digest, "achieved_rate": share}


def _unstructured(spec: PruneSpec, context: Context, parent: Loaded, name: str) -> tuple[NewModel, dict]:
    model, state = parent.model, parent.model.state_dict()
    names = [n for n in prunable(state) if spec.part == "both" or n.startswith(spec.part)]
    before = sum(int((state[n] != 0).sum()) for n in names)
    masks = prune_weights(state, spec.method, rate=spec.rate, threshold=spec.threshold, part=spec.part)
    zeroed = before - sum(int(mask.sum()) for mask in masks.values())
    context.log("info", f"{zeroed:,} of {before:,} non-zero weights in {len(names)} tensors set to zero.")
    made = new_model(
        context.store,
        name=name,
        kind="pruned",
        spec=spec,
        state=apply_masks(state, masks),
        config=model.config,
        layout=model.layout,
        masks={**parent.masks, **masks},
        parents=[("parent", parent.row.id)],
    )
    return made, {"zeroed_weights": zeroed, "prunable_weights": before, "achieved_rate": zeroed / before}
