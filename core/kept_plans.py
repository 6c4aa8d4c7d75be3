"""Plans that are in the store: the units that one pruning kept may be kept again, in another model of the same shape and family.

Layouts are in the coordinates of the baseline, so that two models of one baseline, one config and one layout have the same units,
however they were trained since. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import store as st
from core.errors import CoreError
from core.pruning.plans import Plan
from core.scripts import job_of
from core.specs import PruneSpec
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, sites
from store import ModelRow, Store

A_PLAN = re.compile(r"p_[0-9a-f]{6,16}")
"""A plan's id or the beginning of one; no model can be called so."""


def maker_of(store: Store, ref: str) -> ModelRow:
    """The model that a plan made: named by itself (id, prefix, alias or name), or by the plan's id (`p_`, six digits or more).

    Raises StoreError for a model that is not there, CoreError for a plan that is not.
    """
    if not A_PLAN.fullmatch(ref):
        return st.get_model(store, ref)
    found = {
        model: plan
        for model, plan in store.rows(
            "SELECT model_id, json_extract(result, '$.plan') FROM job WHERE state='done' AND operation='prune' AND model_id IN"
            " (SELECT id FROM model WHERE deleted IS NULL) ORDER BY id"
        )
        if plan is not None and plan.startswith(ref)
    }
    if len(set(found.values())) != 1:
        what = "several plans begin so" if len(set(found.values())) > 1 else "no pruning of this store had it"
        raise CoreError(
            f"There is no plan {ref!r}: {what}.", code="unknown_plan", given=ref,
            legal="a plan's id with six digits or more, or the model that it made", next="Name the model whose units are to be kept.",
        )  # fmt: skip
    return st.get_model(store, next(iter(found)))


def plan_of(store: Store, maker: ModelRow) -> Plan:
    """The plan that made a model; raises CoreError(no_plan) where it was made otherwise, or came without the job that made it."""
    job = job_of(store, maker)
    digest = None if job is None else job.result.get("plan_digest")
    if digest is None or not store.blobs.exists(digest):
        raise CoreError(
            f"{maker.name} has no plan: it was not made by structured pruning in this store.", code="no_plan", given=maker.id,
            legal="a model that structured pruning made", next="Name another model, or choose units anew.",
        )  # fmt: skip
    return Plan.from_json(json.loads(store.blobs.read(digest)))


def plan_for(store: Store, spec: PruneSpec, row: ModelRow) -> Plan:
    """The plan that a spec names; raises CoreError where it was made for another config, layout or family, or cannot be applied so."""
    assert spec.plan is not None
    maker = maker_of(store, spec.plan)
    plan = plan_of(store, maker)
    config = DCAEConfig.from_json(row.config)
    plan.apply_to(config, Layout.from_json(row.layout))
    theirs, own = st.baseline_of(store, maker.id), st.baseline_of(store, row.id)
    if theirs.id != own.id:
        raise CoreError(
            f"Plan {plan.id} was made for another model ({plan.parent}): it goes back to {theirs.name}, {row.name} to {own.name}, and units"
            " are the same only within one family.",
            code="plan_family", given=row.id, legal=f"a model of {theirs.name} ({theirs.id})", next="Make a plan for this model.",
        )  # fmt: skip
    streams = any(sites(config)[name].kind == "stream" for name in plan.keep)
    if spec.stream_norms == "exact" and not streams:
        raise CoreError("stream_norms would have no effect: the plan cuts no residual stream.", code="idle_field", given="exact")
    if spec.stream_norms == "plain" and streams and spec.apply == "mask":
        raise CoreError(
            "The plan cuts residual streams: a masked one needs exact norms.", code="stream_norms", given="plain", legal="exact"
        )
    return plan


def spec_of_choice(store: Store, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pruning that chose the units of a spec: itself, or that of the model whose plan it applies again."""
    while spec.get("plan"):
        named = str(spec["plan"])
        # A recorded spec has the full id, of a model that may have been deleted since; one that was just typed in may have anything.
        spec = (maker_of(store, named) if A_PLAN.fullmatch(named) else st.get_model(store, named, deleted=True)).spec
    return spec
