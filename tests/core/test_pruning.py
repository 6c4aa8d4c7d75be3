"""The property tests of pruning: a cut is its mask, plans compose, counts are exact, torch-pruning agrees where it is right."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from core.errors import CoreError
from core.pruning.masks import apply_masks, prunable, prune_weights, smallest
from core.pruning.ordinary import prune_ordinary
from core.pruning.plans import Plan, achieved, kept_count, make_plan, predicted_layout, site_rates
from core.pruning.scores import resblock_scores, score_units, sliced_norm
from core.pruning.surgery import cut, zero
from core.specs import PruneSpec
from dcaecore import DCAE, VARIANTS, ConfigError, DCAEConfig, Layout, load_model, save_model, sites
from dcaecore.checkpoint import build

SHAPES = ["dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"]


def narrow(name: str) -> DCAEConfig:
    """A variant with odd-ish narrow widths, head_dim 8 and few blocks."""
    config = VARIANTS[name]

    def cut_coder(coder):
        widths = (8, 8, 16, 24, 24, 48)
        if name.endswith("sana-1.0"):
            widths = (8, 8, 16, 32, 32, 64)
        if name.endswith("in"):
            widths = (8, 16, 16, 32, 32, 64)
        if "lite" in name:
            widths = (8, 16, 16, 32, 32, 64)
        depths = tuple(min(depth, 1) for depth in coder.depths)
        return replace(coder, widths=widths, depths=depths, head_dim=8, expand=2)

    return DCAEConfig(cut_coder(config.encoder), cut_coder(config.decoder), latent_channels=16)


def random_model(config: DCAEConfig, seed: int = 0) -> DCAE:
    torch.manual_seed(seed)
    model = DCAE(config).double().eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(torch.rand_like(value) * 0.3)
    return model


MODELS = {name: random_model(narrow(name)) for name in SHAPES}


@st.composite
def keeps(draw, config: DCAEConfig, layout: Layout):
    chosen = {}
    for name, site in sites(config).items():
        units = layout.width(site)
        if site.kind != "stream" and draw(st.booleans()):  # streams have tests of their own, with masked shortcuts
            kept = draw(st.sets(st.integers(0, units - 1), min_size=1, max_size=units))
            chosen[name] = tuple(sorted(kept))
    return chosen


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cut_equals_mask_and_plans_compose(name, data):
    model = MODELS[name]
    config, state = model.config, model.state_dict()
    x = torch.rand(1, 3, 32, 64, dtype=torch.float64) * 2 - 1
    keep = data.draw(keeps(config, Layout()))
    narrower = cut(state, config, Layout(), keep)
    masked = build(config, Layout(), zero(state, config, Layout(), keep))
    small = build(config, narrower.layout, narrower.state)
    with torch.no_grad():
        expected, found = masked(x), small(x)
    assert float((expected - found).norm() / expected.norm()) < 1e-12
    second = data.draw(keeps(config, narrower.layout))
    twice = cut(narrower.state, config, narrower.layout, second)
    both = {}
    for site_name in set(keep) | set(second):
        units = keep.get(site_name) or range(sites(config)[site_name].total)
        both[site_name] = tuple(np.asarray(units)[list(second[site_name])]) if site_name in second else tuple(units)
    once = cut(state, config, Layout(), both)
    assert {k: v for k, v in twice.layout.to_json()["kept"].items()} == once.layout.to_json()["kept"]
    assert all(torch.equal(value, once.state[key]) for key, value in twice.state.items())


@pytest.mark.parametrize("name", SHAPES)
def test_the_empty_plan_is_the_identity(name):
    model = MODELS[name]
    result = cut(model.state_dict(), model.config, Layout(), {})
    assert result.layout.digest() == Layout().digest()
    assert all(torch.equal(value, result.state[key]) for key, value in model.state_dict().items())


def test_two_prunings_with_save_and_load_between(tmp_path):
    model = copy.deepcopy(MODELS["dc-ae-f32c32-in"]).float()
    config = model.config
    spec = PruneSpec(method="l2_structured", rate=0.5, kinds=("mid", "hidden", "heads", "stream"))
    previous = Layout()
    for generation in (1, 2):
        before = {name: model.layout.width(site) for name, site in sites(config).items()}
        plan = make_plan(config, model.layout, score_units(model, "l2"), spec, parent="m_x")
        result = cut(model.state_dict(), config, model.layout, plan.keep)
        path = tmp_path / f"{generation}.safetensors"
        save_model(path, result.state, config=config, layout=result.layout)
        model = load_model(path).model
        assert all(torch.equal(model.state_dict()[key], value) for key, value in result.state.items())
        predicted = predicted_layout(config, previous, spec)
        assert all(predicted.width(site) == result.layout.width(site) for site in sites(config).values())
        for name, site in sites(config).items():
            assert model.layout.width(site) == kept_count(before[name], 0.5)
        assert 0.3 < achieved(config, previous, plan) <= 0.5
        previous = model.layout
    assert torch.isfinite(model(torch.rand(1, 3, 32, 32))).all()


def test_resblock_scores_and_surgery_agree_with_torch_pruning():
    import torch_pruning as tp

    model = copy.deepcopy(MODELS["dc-ae-f32c32-sana-1.0"]).float()
    site = sites(model.config)["encoder.stages.1.blocks.0.mid"]
    block = model.encoder.stages[1].blocks[0]
    theirs = resblock_scores(block)
    ours = sliced_norm(model.state_dict(), model.config, Layout(), site, 2)
    assert np.allclose(theirs, ours, rtol=1e-5)
    gone = [0, 3]
    kept = [i for i in range(site.total) if i not in gone]
    result = cut(model.state_dict(), model.config, Layout(), {site.name: kept})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for inner, root, units, prefix in ((block, "conv1", gone, "encoder.stages.1.blocks.0"),):
            inner = inner.requires_grad_(True)
            graph = tp.DependencyGraph().build_dependency(inner, torch.zeros(1, 8, 8, 8))
            graph.get_pruning_group(getattr(inner, root), tp.prune_conv_out_channels, idxs=units).prune()
            for key, value in inner.state_dict().items():
                assert torch.equal(value, result.state[f"{prefix}.{key}"]), key


def test_glu_surgery_agrees_with_torch_pruning():
    import torch_pruning as tp

    model = copy.deepcopy(MODELS["dc-ae-f32c32-in"]).float()
    site = sites(model.config)["encoder.stages.3.blocks.0.hidden"]
    glu = model.encoder.stages[3].blocks[0].glu.requires_grad_(True)
    hidden = site.total
    gone = [1, 5]
    kept = [i for i in range(hidden) if i not in gone]
    result = cut(model.state_dict(), model.config, Layout(), {site.name: kept})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(glu, torch.zeros(1, 32, 8, 8))
        both = gone + [i + hidden for i in gone]
        graph.get_pruning_group(glu.inverted, tp.prune_conv_out_channels, idxs=both).prune()
    for key, value in glu.state_dict().items():
        assert torch.equal(value, result.state[f"encoder.stages.3.blocks.0.glu.{key}"]), key


@given(units=st.integers(1, 2000), rate=st.integers(2, 18).map(lambda n: n * 0.05), round_to=st.sampled_from([1, 4, 8]))
def test_kept_counts_follow_the_stated_rule(units, rate, round_to):
    kept = kept_count(units, rate, round_to=round_to)
    plain = max(1, units - int(np.floor(rate * units + 1e-9)))
    assert 1 <= kept <= units
    assert plain <= kept < plain + round_to
    assert kept % round_to == 0 or kept == units


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_global_counts_are_exact_under_ties(data):
    values = data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=30), min_size=1, max_size=4))
    tensors = {f"t{i}": torch.tensor(v, dtype=torch.float32) / 4 for i, v in enumerate(values)}
    alive = sum(int((t != 0).sum()) for t in tensors.values())
    count = data.draw(st.integers(0, alive))
    masks = smallest(tensors, count)
    assert sum(int(m.sum()) for m in masks.values()) == alive - count
    kept = [abs(float(v)) for n, t in tensors.items() for v in t[masks[n]]]
    gone = [abs(float(v)) for n, t in tensors.items() for v in t[~masks[n] & (t != 0)]]
    assert not kept or not gone or min(kept) >= max(gone)


def test_half_twice_is_three_quarters_and_masks_compose():
    torch.manual_seed(1)
    state = {f"layer{i}.weight": torch.randn(7, 3 + i, 3, 3) for i in range(3)} | {"norm.weight": torch.ones(7)}
    names = prunable(state)
    assert "norm.weight" not in names
    total = sum(state[n].numel() for n in names)
    first = prune_weights(state, "global_magnitude", rate=0.5)
    once = apply_masks(state, first)
    assert sum(int((once[n] != 0).sum()) for n in names) == total - round(0.5 * total)
    second = prune_weights(once, "global_magnitude", rate=0.5)
    twice = apply_masks(once, second)
    left = total - round(0.5 * total)
    assert sum(int((twice[n] != 0).sum()) for n in names) == left - round(0.5 * left)
    assert all(bool((~first[n] & second[n]).any()) is False for n in names)


def test_l1_unstructured_takes_the_rate_of_each_layer_and_a_threshold_is_absolute():
    state = MODELS["dc-ae-lite-f32c32"].state_dict()
    masks = prune_weights(state, "l1_unstructured", rate=0.3, part="decoder")
    assert all(name.startswith("decoder") for name in masks)
    for mask in masks.values():
        assert int((~mask).sum()) == round(0.3 * mask.numel())
    by_threshold = prune_weights(state, "l1_unstructured", threshold=0.01)
    assert all(torch.equal(mask, state[name].abs() >= 0.01) for name, mask in by_threshold.items())


def test_refusals_say_why():
    model = MODELS["dc-ae-f32c32-in"]
    spec = PruneSpec(method="l2_structured", rate=0.5)
    plan = make_plan(model.config, Layout(), score_units(model, "l2"), spec, parent="m_a")
    assert Plan.from_json(plan.to_json()) == plan
    narrower = plan.apply_to(model.config, Layout())
    with pytest.raises(CoreError, match="made for another model"):
        plan.apply_to(model.config, narrower)
    with pytest.raises(ConfigError, match="last unit"):
        cut(model.state_dict(), model.config, Layout(), {"encoder.stages.1.blocks.0.mid": ()})
    with pytest.raises(ConfigError, match="no site"):
        cut(model.state_dict(), model.config, Layout(), {"encoder.nowhere": (0,)})
    with pytest.raises(CoreError, match="no stage"):
        site_rates(model.config, PruneSpec(stage_rates={"middle": 0.3}))
    with pytest.raises(CoreError, match="last weight"):
        prune_weights(model.state_dict(), "l1_unstructured", threshold=1e9)
    with pytest.raises(CoreError, match="No weight"):
        prune_weights(model.state_dict(), "l1_unstructured", threshold=1e-30)
    broken = dict(model.state_dict())
    broken["encoder.conv_out.weight"] = torch.full_like(broken["encoder.conv_out.weight"], float("nan"))
    with pytest.raises(CoreError, match="not finite"):
        prune_weights(broken, "global_magnitude", rate=0.5)


def test_ordinary_networks_go_through_torch_pruning():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    net.train()
    prune_ordinary(net, torch.zeros(1, 3, 16, 16), 0.5)
    assert net[0].out_channels == 4 and net[3].out_channels == 8 and net[5].out_channels == 4
    assert net.training and all(p.requires_grad for p in net.parameters())
    with pytest.raises(CoreError):
        prune_ordinary(net, torch.zeros(1, 3, 16, 16), 1.0)
