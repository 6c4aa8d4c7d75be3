"""Units that are masked instead of cut: they compute the same, hold through training, and go first when a later pruning cuts."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.errors import CoreError
from core.operations.models import load
from core.pruning.masks import apply_masks, combine
from core.pruning.plans import Plan, make_plan
from core.pruning.scores import rank_zeros_last, score_units
from core.pruning.surgery import cut, unit_masks
from core.specs import PruneSpec
from dcaecore import VARIANTS, ConfigError, Layout, sites
from dcaecore.checkpoint import build
from dcaecore.distillation import Distillation, DistillWeights
from tests.core.test_streams import ALL, keeps

KINDS = ("mid", "hidden", "heads", "stream")
RETRAIN = {
    "image_size": 32, "batch_size": 2, "n_epochs": 1, "steps_per_epoch": 3, "warmup_epochs": 0, "init_lr": 1e-2, "val_steps": 4,
    "num_workers": 0, "weight_decay": 0.5, "decay_norms_and_biases": True, "ema_decay": 0.5, "keep": "last",
}  # fmt: skip
CALIBRATION = {"calibration_images": 16, "calibration_size": 32}


def perturbed(state, masks):
    """Every weight moved, as a training does, and the masked ones back at zero."""
    moved = {k: v + 0.05 * torch.randn_like(v) if v.is_floating_point() and "running_" not in k else v for k, v in state.items()}
    return apply_masks(moved, masks)


@pytest.mark.parametrize("name", ["tiny", "dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"])
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_masked_model_that_was_trained_computes_what_its_cut_does(name, data):
    model = ALL[name]
    config, keep = model.config, data.draw(keeps(model))
    if data.draw(st.booleans()):
        keep = {site: units for site, units in keep.items() if sites(config)[site].kind != "stream"}
    torch.manual_seed(0)
    masks = unit_masks(model.state_dict(), config, Layout(), keep)
    layout = Layout().hold(config, keep)
    state = perturbed(model.state_dict(), masks)
    narrow = cut(state, config, layout, keep, masks=masks)
    assert narrow.layout == Layout().compose(config, keep) and all(bool(mask.all()) for mask in narrow.masks.values())
    step = config.spatial_compression
    x = torch.rand(1, 3, step, 2 * step, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected, found = build(config, layout, state)(x), build(config, narrow.layout, narrow.state)(x)
    streams = any(sites(config)[site].kind == "stream" for site in keep)
    assert float((found - expected).norm() / expected.norm()) < (1e-10 if streams else 1e-12)
    assert streams or layout == Layout()


def test_a_student_is_not_asked_for_channels_that_are_held():
    torch.manual_seed(0)
    teacher = copy.deepcopy(ALL["tiny"])
    config, keep = (
        teacher.config,
        {"decoder.stages.2.stream": tuple(range(4, 32)), "encoder.stages.3.stream": tuple(range(3, 16))},
    )
    state = apply_masks(teacher.state_dict(), unit_masks(teacher.state_dict(), config, Layout(), keep))
    held, narrow = Layout().hold(config, keep), cut(state, config, Layout(), keep)
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    terms = []
    for student in (build(config, held, state), build(config, narrow.layout, narrow.state)):
        terms.append(Distillation(teacher, student, DistillWeights(0.0, 0.0, 1.0))(x)[1].item())
    assert terms[0] == pytest.approx(terms[1], rel=1e-5) and terms[0] > 0


def test_held_units_are_part_of_a_layout_and_not_of_its_coordinates():
    config = VARIANTS["tiny"]
    name = "decoder.stages.1.stream"
    keep = {name: tuple(range(2, 16)), "decoder.stages.1.blocks.0.mid": (0, 1)}
    held = Layout().hold(config, keep)
    assert (
        held.held == {name: (0, 1)}
        and held.kept == {}
        and held.digest() == Layout().digest() != held.compose(config, keep).digest()
    )
    assert Layout.from_json(held.to_json()) == held and "held" not in Layout().to_json()
    assert held.compose(config, {name: (0, *range(3, 16))}) == Layout({name: (0, *range(3, 16))}, {name: (0,)})
    assert held.hold(config, {name: (0, 1, *range(3, 16))}).held == {name: (0, 1, 2)}
    assert Plan("m_x", Layout().digest(), keep).apply_to(config, held) == Layout().compose(config, keep)
    for wrong in ({name: tuple(range(16))}, {name: (16,)}, {"decoder.stages.1.blocks.0.mid": (0,)}, {"decoder": (0,)}):
        with pytest.raises(ConfigError, match="cannot hold"):
            Layout({}, wrong).validate(config)


@pytest.mark.parametrize("scope", ["local", "kind", "global"])
@pytest.mark.parametrize("score", ["l1", "l2", "lamp", "fpgm", "random"])
def test_units_that_are_zero_go_first_whatever_the_score(score, scope):
    model = ALL["tiny"]
    config, names = model.config, [name for name, site in sites(model.config).items() if site.kind != "stream"]
    generator = np.random.default_rng(3)
    gone = {n: set(generator.choice(sites(config)[n].total, sites(config)[n].total // 4, replace=False).tolist()) for n in names}
    keep = {n: tuple(u for u in range(sites(config)[n].total) if u not in gone[n]) for n in names}
    masks = unit_masks(model.state_dict(), config, Layout(), keep)
    masked = build(config, Layout(), apply_masks(model.state_dict(), masks))
    spec = PruneSpec(method="structured", score=score, scope=scope, compensate=False)
    for rate in (0.25, 0.5):
        scores = rank_zeros_last(score_units(masked, score, names=names), masked.state_dict(), config, Layout())
        plan = make_plan(config, Layout(), scores, spec.model_copy(update={"rate": rate}))
        for name in names:
            removed = set(range(sites(config)[name].total)) - set(plan.keep[name])
            assert removed == gone[name] if rate == 0.25 else removed >= gone[name], name


def test_damaged_weights_do_not_pass_for_zeros():
    damaged = copy.deepcopy(ALL["tiny"])
    name = "decoder.stages.1.blocks.0"
    with torch.no_grad():
        damaged.get_parameter(f"{name}.conv1.weight")[3] = torch.nan
    scores = rank_zeros_last(score_units(damaged, "l1"), damaged.state_dict(), damaged.config, Layout())
    with pytest.raises(CoreError, match=f"Scores of {name}.mid are not finite"):
        make_plan(damaged.config, Layout(), scores, PruneSpec(kinds=("mid",)))


@pytest.fixture(scope="module")
def parent(bench):
    return bench.add()


CHAINS = {
    "by magnitude": {"method": "l2_structured"},
    "at random": {"method": "structured", "score": "random", "compensate": False},
    "with streams": {"method": "l2_structured", "kinds": list(KINDS), "stream_norms": "exact"},
    "folded": {"method": "structured", "part": "decoder", "kinds": ["mid"], **CALIBRATION},
    "ranked together": {"method": "structured", "score": "fpgm", "scope": "global", "compensate": False},
}


@pytest.mark.parametrize("chain", CHAINS)
def test_masks_hold_through_retraining_and_the_same_rate_cuts_what_was_masked(bench, parent, chain):
    fields = CHAINS[chain]
    job = bench.run("prune", parent.id, rate=0.4, apply="mask", **fields)
    masked = load(bench.store, job.model_id)
    at_once = load(bench.store, bench.run("prune", parent.id, rate=0.4, **fields).model_id)
    assert masked.model.layout.kept == {} and bool(masked.model.layout.held) == ("stream" in fields.get("kinds", []))
    assert masked.row.facts["parameters"] == parent.facts["parameters"] and masked.row.facts["sparsity"] > 0.03
    assert 0.3 < job.result["achieved_rate"] <= 0.4
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(masked.model(x), at_once.model(x), atol=1e-5)
    trained = load(bench.store, bench.run("retrain", masked.row.id, **RETRAIN).model_id)
    state = trained.model.state_dict()
    leaks = sum(int((state[name] != 0)[~mask].sum()) for name, mask in masked.masks.items())
    assert leaks == 0 and trained.masks.keys() == masked.masks.keys() and trained.model.layout == masked.model.layout
    assert any(not torch.equal(state[name], value) for name, value in masked.model.state_dict().items())
    final = load(bench.store, bench.run("prune", trained.row.id, rate=0.4, **fields).model_id)
    assert final.model.layout == at_once.model.layout and final.masks == {} and final.row.facts["sparsity"] < 0.03
    if chain != "folded":  # a fold moves weights again
        with torch.no_grad():
            assert torch.allclose(final.model(x), trained.model(x), atol=1e-5)


def test_a_second_mask_joins_the_first_and_an_unstructured_one_stays(bench, parent):
    sparse = bench.run("prune", parent.id, method="global_magnitude", rate=0.3).model_id
    half = bench.run("prune", sparse, rate=0.3, apply="mask").model_id
    more = load(bench.store, bench.run("prune", half, rate=0.6, apply="mask").model_id)
    for before in (load(bench.store, sparse), load(bench.store, half)):
        assert not any((more.masks[name] & ~mask).any() for name, mask in before.masks.items())
    final = load(bench.store, bench.run("prune", more.row.id, rate=0.6).model_id)
    assert final.masks and all(name.endswith("weight") and mask.ndim > 1 and not mask.all() for name, mask in final.masks.items())
    state = final.model.state_dict()
    assert all(not state[name][~mask].any() for name, mask in final.masks.items())


def test_batchnorm_streams_are_held_behind_masked_norms(bench):
    decoder = replace(VARIANTS["tiny"].decoder, norms=("bn2d",) * 4, acts=("relu",) * 4)
    row = bench.add(replace(VARIANTS["tiny"], decoder=decoder), name="batchnorm")
    fields = {"rate": 0.5, "kinds": list(KINDS), "stream_norms": "exact"}
    masked = bench.run("prune", row.id, apply="mask", **fields).model_id
    trained = load(bench.store, bench.run("retrain", masked, **RETRAIN, batchnorm="train").model_id)
    narrow = load(bench.store, bench.run("prune", trained.row.id, **fields).model_id)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(narrow.model.eval()(x), trained.model.eval()(x), atol=1e-5)
    assert narrow.masks == {}


def test_combined_masks_keep_what_all_keep():
    a, b = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    found = combine({"a": a, "x": a}, {"b": b, "x": b})
    assert torch.equal(found["a"], a) and torch.equal(found["b"], b) and found["x"].tolist() == [True, False, False]


def test_a_masked_stream_needs_exact_norms():
    with pytest.raises(ValidationError, match="needs stream_norms exact"):
        PruneSpec(apply="mask", kinds=KINDS)
