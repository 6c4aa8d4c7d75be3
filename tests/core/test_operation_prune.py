"""Prune: the method that was chosen is the one that runs, and each field of the form changes something alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

import store as st
from core.errors import CoreError
from core.operations.models import load
from core.pruning.plans import Plan, kept_count
from core.specs import METHOD_TITLES, PruneSpec, RetrainSpec
from dcaecore import VARIANTS, Layout, sites


@pytest.fixture(scope="module")
def parent(bench):
    return bench.add()


@pytest.fixture(scope="module")
def plain(bench, parent):
    """The model that the fields' defaults make."""
    return load(bench.store, bench.run("prune", parent.id).model_id)


SMALL = {"calibration_images": 16, "calibration_size": 32}
BESIDE = {"structured": SMALL, "two_four": {"skip_unfit": True}}


# Failure 2: the method drop-down was ignored; no structured pruning of DC-AE, so no speed-up.
def test_each_method_makes_its_own_model_and_only_the_structured_one_costs_less(bench, parent):
    made = {
        method: load(bench.store, bench.run("prune", parent.id, method=method, **BESIDE.get(method, {})).model_id)
        for method in METHOD_TITLES
    }
    assert len({found.row.id for found in made.values()}) == len(METHOD_TITLES) == 5
    facts = {method: found.row.facts for method, found in made.items()}
    for method in ("l1_unstructured", "global_magnitude", "two_four"):
        assert facts[method]["parameters"] == parent.facts["parameters"]
        assert facts[method]["decode_macs"] == parent.facts["decode_macs"]
        assert facts[method]["sparsity"] == pytest.approx(0.5, abs=0.03) and made[method].masks
    shares = {
        method: {name: round(float(mask.float().mean()), 2) for name, mask in found.masks.items()}
        for method, found in made.items()
    }
    assert (
        set(shares["l1_unstructured"].values()) == set(shares["two_four"].values()) == {0.5}
        and len(set(shares["global_magnitude"].values())) > 5
    )
    for method in ("l2_structured", "structured"):
        structured = made[method]
        assert facts[method]["parameters"] < 0.8 * parent.facts["parameters"]
        assert facts[method]["decode_macs"] < 0.8 * parent.facts["decode_macs"]
        assert facts[method]["sparsity"] < 0.03 and not structured.masks
        block = "decoder.stages.1.blocks.0"
        assert structured.model.get_submodule(f"{block}.conv1").out_channels == 8  # of 16: the convolution itself is half
        assert structured.model.state_dict()[f"{block}.conv2.weight"].shape[1] == 8


def widths(bench, parent, **fields) -> dict[str, int]:
    found = load(bench.store, bench.run("prune", parent.id, **fields).model_id).model
    return {site.name: found.layout.width(site) for site in sites(found.config).values()}


CASES = {
    "rate": (0.25, lambda site: kept_count(site.total, 0.25)),
    "part": ("decoder", lambda site: site.total if site.coder == "encoder" else kept_count(site.total, 0.5)),
    "round_to": (12, lambda site: kept_count(site.total, 0.5, round_to=1 if site.kind == "heads" else 12)),
    "kinds": (["hidden"], lambda site: kept_count(site.total, 0.5) if site.kind == "hidden" else site.total),
    "site_rates": (
        {"encoder.stages.3": 0.0, "decoder.stages.1": 0.75},
        lambda site: kept_count(
            site.total, {("encoder", 3): 0.0, ("decoder", 1): 0.75}.get((site.coder, site.stage), 0.5)
        ),
    ),
}  # fmt: skip
"""Fields that every structured method takes: (value, width of each internal site)."""


@pytest.mark.parametrize("field", CASES)
def test_a_field_alone_changes_the_sites_that_it_names(bench, parent, plain, field):
    value, rule = CASES[field]
    found = widths(bench, parent, **{field: value})
    assert found == {
        site.name: site.total if site.kind == "stream" else rule(site) for site in sites(VARIANTS["tiny"]).values()
    }  # fmt: skip
    assert found != {site.name: plain.model.layout.width(site) for site in sites(VARIANTS["tiny"]).values()}


STREAMS = ["mid", "hidden", "heads", "stream"]
SCORED = {
    "score": ({}, "fpgm"),
    "scope": ({}, "global"),
    "compensate": ({}, False),
    "calibration_images": ({}, 24),
    "calibration_size": ({}, 64),
    "calibration_foreground_weight": ({}, 1.0),
    "calibration_data": ({}, {"deny_rows": ["00000000", "00000001", "00000002", "00000023", "00000024"], "split_seed": 1}),
    "seed": ({}, 1),
    "stream_norms": ({"kinds": STREAMS}, "exact"),
}
"""Fields of the method `structured`: (what must stand beside it, the value). Each alone makes another model."""


def test_each_field_of_the_scored_method_alone_makes_another_model(bench, parent):
    def made(**fields) -> str:
        job = bench.run("prune", parent.id, method="structured", **{**SMALL, **fields})
        return load(bench.store, job.model_id).row.weights_digest

    base = {name: made(**beside) for name, (beside, _value) in SCORED.items() if beside}
    plain = made()
    for name, (beside, value) in SCORED.items():
        assert made(**beside, **{name: value}) != base.get(name, plain), name


def test_part_and_threshold_of_an_unstructured_pruning(bench, parent):
    half = load(bench.store, bench.run("prune", parent.id, method="l1_unstructured", part="encoder").model_id)
    assert {name.split(".")[0] for name in half.masks} == {"encoder"}
    cut = load(bench.store, bench.run("prune", parent.id, method="global_magnitude", rate=None, threshold=0.02).model_id)
    dense = load(bench.store, parent.id).model.state_dict()
    assert cut.masks and all(torch.equal(mask, dense[name].abs() >= 0.02) for name, mask in cut.masks.items())


def test_every_field_has_its_case():
    elsewhere = {"skip_unfit", "apply", "plan"}  # test_two_four, test_masked_units, test_kept_plans
    assert set(PruneSpec.model_fields) == {"method", "threshold", *elsewhere, *CASES, *SCORED}


IDLE = (
    (PruneSpec, {"score": "lamp"}),
    (PruneSpec, {"threshold": 0.1, "rate": None}),
    (PruneSpec, {"method": "global_magnitude", "site_rates": {"mid": 0.3}}),
    (PruneSpec, {"method": "structured", "score": "l2", "compensate": False, "calibration_images": 4}),
    (PruneSpec, {"method": "structured", "score": "l2", "compensate": False, "seed": 1}),
    (PruneSpec, {"stream_norms": "exact"}),
    (RetrainSpec, {"momentum": 0.5}),
    (RetrainSpec, {"lr_schedule_name": "constant", "min_lr": 1e-5}),
)


@pytest.mark.parametrize(("kind", "fields"), IDLE)
def test_an_option_that_would_be_ignored_is_refused(kind, fields):
    with pytest.raises(ValidationError, match="would have no effect: it applies where"):
        kind.model_validate(fields)


def test_the_plan_is_kept_beside_its_model(bench, parent, plain):
    job = bench.run("prune", parent.id)
    plan = Plan.from_json(json.loads(bench.store.blobs.read(job.result["plan_digest"])))
    assert plan.id == job.result["plan"] and plan.parent == parent.id
    assert plan.apply_to(VARIANTS["tiny"], Layout()) == plain.model.layout
    assert 0.4 < job.result["achieved_rate"] <= 0.5 and job.model_id == plain.row.id
    assert any("Asked for 0.5" in line["message"] for line in bench.log(job))


def test_zeros_stay_zero_through_a_second_and_a_structured_pruning(bench, parent):
    first = bench.run("prune", parent.id, method="l1_unstructured", rate=0.5)
    second = bench.run("prune", first.model_id, method="l1_unstructured", rate=0.5)
    assert second.result["prunable_weights"] == first.result["prunable_weights"] - first.result["zeroed_weights"]
    sparse = load(bench.store, second.model_id)
    earlier = load(bench.store, first.model_id)
    assert all(not (mask & ~earlier.masks[name]).any() for name, mask in sparse.masks.items())
    assert sparse.row.facts["sparsity"] == pytest.approx(0.75, abs=0.03)
    narrow = load(bench.store, bench.run("prune", second.model_id, rate=0.5).model_id)
    state = narrow.model.state_dict()
    assert narrow.masks.keys() == sparse.masks.keys()
    assert all(mask.shape == state[name].shape and not state[name][~mask].any() for name, mask in narrow.masks.items())
    assert narrow.row.facts["sparsity"] > 0.5


def test_batchnorm_is_left_as_it_is(bench):
    decoder = replace(VARIANTS["tiny"].decoder, norms=("bn2d",) * 4, acts=("relu",) * 4)
    row = bench.add(replace(VARIANTS["tiny"], decoder=decoder), name="batchnorm")
    before = load(bench.store, row.id).model.state_dict()
    after = load(bench.store, bench.run("prune", row.id).model_id).model.state_dict()
    kept = [name for name in before if ".norm." in name]
    assert any("running_var" in name for name in kept)
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_a_cancel_makes_no_model(bench, parent):
    before = st.list_models(bench.store)
    job = bench.submit("prune", parent.id, rate=0.35)
    claimed = bench.claim()
    st.jobs.request(bench.store, job.id, "cancel")
    assert bench.perform(claimed).state == "cancelled"
    assert st.list_models(bench.store) == before


def test_what_cannot_be_is_refused(bench, parent):
    for fields, words in (
        ({"site_rates": {"middle": 0.5}}, "no site"),
        ({"kinds": []}, "Nothing would be pruned"),
        ({"method": "global_magnitude", "rate": None, "threshold": 1e9}, "last weight"),
        ({"method": "l1_unstructured", "rate": None, "threshold": 1e-30}, "No weight would be pruned"),
    ):
        with pytest.raises(CoreError, match=words):
            bench.run("prune", parent.id, **fields)
    with pytest.raises(CoreError, match="needs a parent"):
        bench.run("prune")
