"""The property tests of pruning: a cut is its mask, plans compose, counts are exact, torch-pruning agrees where it is right."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

import core.pruning.masks as masks_module
from core.errors import CoreError
from core.presets import PRESETS
from core.pruning.masks import apply_masks, prune_weights, shapes_of, smallest
from core.pruning.ordinary import prune_ordinary
from core.pruning.plans import Plan, achieved, kept_count, make_plan, predicted_layout, site_rates
from core.pruning.prunable import prunable
from core.pruning.scores import score_units, sliced_norm
from core.pruning.surgery import cut, zero
from core.specs import PruneSpec
from dcaecore import DCAE, VARIANTS, ConfigError, DCAEConfig, Layout, load_model, save_model, sites
from dcaecore.checkpoint import build
from dcaecore.cost import estimate

SHAPES = ["dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32", "dc-ae-f64c128-mix", "dc-ae-f128c512-in"]
"""One of each build: BatchNorm or not, both resamplings, scales or none, six to eight stages (in and mix differ in no tensor)."""
EACH = [*SHAPES[:-1], pytest.param(SHAPES[-1], marks=pytest.mark.slow)]
"""The last is the one before with a stage more; what is drawn at random draws it too."""
ENCODER_WIDTHS = {"unshuffle": (12, 12, 12, 24, 24, 24, 24, 24), "conv": (7, 7, 14, 56, 56, 56)}
DECODER_WIDTHS = (5, 5, 10, 40, 40, 40, 40, 40)
"""Odd where a shape allows it: five channels under BatchNorm, three quarters of an unshuffle, three, five and seven heads."""


def narrow(name: str) -> DCAEConfig:
    """A variant with odd narrow widths, heads of 8 and one block a stage."""
    config = VARIANTS[name]

    def cut_coder(coder, widths):
        depths = tuple(min(depth, 1) for depth in coder.depths)
        return replace(coder, widths=widths[: coder.num_stages], depths=depths, head_dim=8, expand=2)

    encoder = cut_coder(config.encoder, ENCODER_WIDTHS[config.encoder.resample])
    decoder = cut_coder(config.decoder, DECODER_WIDTHS)
    return DCAEConfig(encoder, decoder, latent_channels=8)


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


@pytest.mark.parametrize("name", EACH)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cut_equals_mask_and_plans_compose(name, data):
    model = MODELS[name]
    config, state = model.config, model.state_dict()
    side = config.spatial_compression
    x = torch.rand(1, 3, side, 2 * side, dtype=torch.float64) * 2 - 1
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


@pytest.mark.parametrize("name", EACH)
def test_the_empty_plan_and_the_one_that_keeps_everything_are_the_identity(name):
    model = MODELS[name]
    everything = {site.name: range(site.total) for site in sites(model.config).values()}
    for keep in ({}, everything):
        result = cut(model.state_dict(), model.config, Layout(), keep)
        assert result.layout.digest() == Layout().digest()
        for found in (result.state, zero(model.state_dict(), model.config, Layout(), keep)):
            assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", EACH)
def test_masks_go_with_the_units_that_they_belong_to(name):
    model = MODELS[name]
    masks = prune_weights(model.state_dict(), "global_magnitude", rate=0.4)
    state = apply_masks(model.state_dict(), masks)
    keep = {site.name: range(0, site.total, 2) for site in sites(model.config).values()}
    result = cut(state, model.config, Layout(), keep, masks=masks)
    assert result.masks.keys() == masks.keys()
    for key, mask in result.masks.items():
        assert mask.shape == result.state[key].shape and torch.equal(mask, result.state[key] != 0)


@pytest.mark.parametrize("name", EACH)
def test_two_prunings_with_save_and_load_between(name, tmp_path):
    model = copy.deepcopy(MODELS[name]).float()
    config, previous = model.config, Layout()
    for generation, rate in ((1, 0.5), (2, 0.3)):
        spec = PruneSpec(method="l2_structured", rate=rate, kinds=("mid", "hidden", "heads", "stream"))
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
            assert model.layout.width(site) == kept_count(before[name], rate)
        assert 0.5 * rate < achieved(config, previous, plan) <= rate
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).apply_to(config, previous) == model.layout
        previous = model.layout
    side = config.spatial_compression
    assert torch.isfinite(model(torch.rand(1, 3, side, side))).all()


def chosen_blocks(kind: str) -> list[tuple[str, str]]:
    """The first and the last block of each coder that has sites of a kind (deeper shapes repeat the blocks of f32)."""
    found = []
    for name, model in list(MODELS.items())[:3]:
        for coder in ("encoder", "decoder"):
            named = [site.name for site in sites(model.config).values() if site.kind == kind and site.coder == coder]
            found += [(name, site) for site in dict.fromkeys((*named[:1], *named[-1:]))]
    return found


def agree(name: str, site_name: str, part: str, root: str, gone: list[int]) -> None:
    """torch-pruning's explicit group and our cut leave the same bits in a block."""
    import torch_pruning as tp

    model = copy.deepcopy(MODELS[name]).float()
    site = sites(model.config)[site_name]
    prefix = f"{site_name.rpartition('.')[0]}{part}"
    result = cut(model.state_dict(), model.config, Layout(), {site.name: [i for i in range(site.total) if i not in gone]})
    block = model.get_submodule(prefix).requires_grad_(True)
    rows = gone if site.kind == "mid" else gone + [unit + site.total for unit in gone]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = getattr(block, root)
        graph = tp.DependencyGraph().build_dependency(block, torch.zeros(1, first.in_channels, 8, 8))
        graph.get_pruning_group(first, tp.prune_conv_out_channels, idxs=rows).prune()
    assert first.out_channels == len(rows) // len(gone) * (site.total - len(gone))
    for key, value in block.state_dict().items():
        assert torch.equal(value, result.state[f"{prefix}.{key}"]), key


@pytest.mark.parametrize(
    ("name", "site_name", "part", "root"),
    [
        *((*chosen, "", "conv1") for chosen in chosen_blocks("mid")),
        *((*chosen, ".glu", "inverted") for chosen in chosen_blocks("hidden")),
    ],
)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_surgery_of_resblocks_and_glus_agrees_with_torch_pruning(name, site_name, part, root, data):
    units = sites(MODELS[name].config)[site_name].total
    gone = data.draw(st.sets(st.integers(0, units - 1), min_size=1, max_size=units - 1))
    agree(name, site_name, part, root, sorted(gone))


@pytest.mark.parametrize("name", EACH)
def test_scores_of_a_resblock_are_those_of_our_own_slices(name):
    model = copy.deepcopy(MODELS[name]).float()
    scores = score_units(model, "l2")
    for site in sites(model.config).values():
        assert scores[site.name].shape == (site.total,)
        if site.kind == "mid":
            assert np.allclose(scores[site.name], sliced_norm(model.state_dict(), model.config, Layout(), site, 2), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(SHAPES),
    rate=st.integers(2, 18).map(lambda n: round(n * 0.05, 2)),
    round_to=st.sampled_from([1, 2, 8]),
    part=st.sampled_from(["both", "encoder", "decoder"]),
    kinds=st.sets(st.sampled_from(["mid", "hidden", "heads"]), min_size=1).map(tuple),
    seed=st.integers(0, 9),
)
def test_a_plan_keeps_the_best_units_of_exactly_the_sites_that_were_meant(name, rate, round_to, part, kinds, seed):
    config, random = MODELS[name].config, np.random.default_rng(seed)
    scores = {site.name: random.integers(0, 5, site.total).astype(float) for site in sites(config).values()}
    spec = PruneSpec(rate=rate, round_to=round_to, part=part, kinds=kinds)
    meant = [site for site in sites(config).values() if part in ("both", site.coder) and site.kind in kinds]
    if not meant:
        with pytest.raises(CoreError, match="Nothing would be pruned"):
            make_plan(config, Layout(), scores, spec)
        return
    plan = make_plan(config, Layout(), scores, spec)
    assert set(plan.keep) == {site.name for site in meant}
    for site in meant:
        values, kept = scores[site.name], list(plan.keep[site.name])
        gone = sorted(set(range(site.total)) - set(kept))
        asked = Fraction(str(rate)) * site.total  # exact, where a product of floats may fall short
        fewest = max(1, site.total - asked.numerator // asked.denominator)
        multiple = round_to if site.kind != "heads" else 1
        assert len(kept) == min(site.total, -(-fewest // multiple) * multiple) and kept == sorted(kept)
        assert not gone or min(values[kept]) >= max(values[gone])


@given(units=st.integers(1, 2000), hundredths=st.integers(10, 90), round_to=st.sampled_from([1, 4, 8]))
@example(units=100, hundredths=29, round_to=1)  # 0.29 x 100 is 28.999999999999996 in floats
def test_kept_counts_follow_the_stated_rule(units, hundredths, round_to):
    kept = kept_count(units, hundredths / 100, round_to=round_to)
    plain = max(1, units - units * hundredths // 100)
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


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "misled"])
@pytest.mark.parametrize("rate", [0.001, 0.5, 0.999])
def test_a_sampled_threshold_is_exact_even_where_the_sample_misleads(monkeypatch, kind, rate):
    monkeypatch.setattr(masks_module, "_SAMPLE", 1000)
    monkeypatch.setattr(masks_module, "_CHUNK", 4096)
    tensors = {name: torch.randn(20_000, generator=torch.Generator().manual_seed(place)) for place, name in enumerate("ab")}
    if kind == "ties":
        tensors = {name: value.mul(3).round().div(3) for name, value in tensors.items()}
    if kind == "zeros":
        tensors["a"][::3] = 0.0
    if kind == "misled":
        for value in tensors.values():
            value[::40] *= 100.0  # the sample's own stride
    alive = torch.cat([value[value != 0].abs() for value in tensors.values()])
    count = round(rate * len(alive))
    kept = smallest(tensors, count)
    assert sum(int(mask.sum()) for mask in kept.values()) == len(alive) - count
    limit = float(alive.sort().values[count - 1])
    assert all(float(value[kept[name]].abs().min()) >= limit for name, value in tensors.items())


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_counts_of_each_layer_are_exact_under_ties_and_zeros_stay(data):
    state = {
        f"layer{i}.weight": torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=8, max_size=30))).float()[None]
        for i in range(2)
    }
    state["layer0.bias"] = torch.ones(3)
    rate = data.draw(st.sampled_from([0.2, 0.5, 0.7]))
    alive = {name: int((state[name] != 0).sum()) for name in prunable(shapes_of(state))}
    for method, exact in (("l1_unstructured", False), ("global_magnitude", True)):
        try:
            masks = prune_weights(state, method, rate=rate)
        except CoreError as error:
            assert error.code in ("empty_layer", "nothing_to_prune")
            continue
        assert set(masks) == {"layer0.weight", "layer1.weight"}
        assert not any((mask & (state[name] == 0)).any() for name, mask in masks.items())
        left = {name: int(mask.sum()) for name, mask in masks.items()}
        if exact:
            assert sum(left.values()) == sum(alive.values()) - round(rate * sum(alive.values()))
        else:
            assert left == {name: count - round(rate * count) for name, count in alive.items()}


def test_half_twice_is_three_quarters_and_masks_compose():
    torch.manual_seed(1)
    state = {f"layer{i}.weight": torch.randn(7, 3 + i, 3, 3) for i in range(3)} | {"norm.weight": torch.ones(7)}
    names = prunable(shapes_of(state))
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


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_illegal_plans_are_refused_with_the_site_and_change_nothing(data):
    model = MODELS[data.draw(st.sampled_from(SHAPES))]
    site = data.draw(st.sampled_from(list(sites(model.config).values())))
    bad = data.draw(
        st.sampled_from([(), (0, 0), (1, 0), (-1,), (site.total,), (0, site.total + 5)])
        | st.lists(st.integers(0, site.total - 1), min_size=2).filter(lambda units: units != sorted(set(units))).map(tuple)
    )
    prefix = site.name.rpartition(".")[0]
    block = {key: value.clone() for key, value in model.state_dict().items() if key.startswith(prefix)}
    for change in (cut, zero):
        with pytest.raises(ConfigError, match=site.name):
            change(model.state_dict(), model.config, Layout(), {site.name: bad})
    with pytest.raises(ConfigError, match=site.name):
        Plan("m_x", Layout().digest(), {site.name: bad}).apply_to(model.config, Layout())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in block.items())


def test_the_most_particular_rate_wins():
    config = MODELS["dc-ae-f32c32-in"].config
    own = "decoder.stages.1.blocks.0.mid"
    given = {"mid": 0.2, "decoder.stages.1": 0.3, own: 0.4, "stream": 0.0}
    found = site_rates(config, PruneSpec(rate=0.6, kinds=("mid", "heads", "stream"), site_rates=given))
    for name, site in sites(config).items():
        if site.kind == "hidden" or (site.kind == "stream" and (site.coder, site.stage) != ("decoder", 1)):
            assert name not in found
        elif name == own:
            assert found[name] == 0.4
        elif (site.coder, site.stage) == ("decoder", 1):
            assert found[name] == 0.3
        else:
            assert found[name] == (0.2 if site.kind == "mid" else 0.6)
    of_decoder = PruneSpec(kinds=("stream",), site_rates={"encoder.stream": 0.0, "decoder.stream": 0.25})
    streams = {n for n, site in sites(config).items() if site.kind == "stream" and site.coder == "decoder"}
    assert site_rates(config, of_decoder) == dict.fromkeys(streams, 0.25)
    deepest = PruneSpec(kinds=("stream",), site_rates={"stream": 0.0, "decoder.stages.-1.stream": 0.25})
    assert site_rates(config, deepest) == {f"decoder.stages.{config.decoder.num_stages - 1}.stream": 0.25}


def test_streams_are_named_by_the_half_they_are_in():
    config = VARIANTS["demo-f32c32"]  # no units in stage 0
    spec = PruneSpec(kinds=("stream",), site_rates={"stream": 0.0, "decoder.fine.stream": 0.5, "decoder.stages.2": 0.25})
    halves = {1: 0.5, 2: 0.25, 3: 0.5}
    assert site_rates(config, spec) == {f"decoder.stages.{stage}.stream": rate for stage, rate in halves.items()}
    deep = PruneSpec(kinds=("stream",), site_rates={"stream": 0.0, "decoder.deep.stream": 0.5})
    assert set(site_rates(config, deep)) == {"decoder.stages.4.stream", "decoder.stages.5.stream"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_presets_prune_the_decoder_of_every_shape(variant, preset):
    config, spec = VARIANTS[variant], PRESETS[preset].prune
    rates = site_rates(config, spec)
    assert rates and all(name.startswith("decoder.") for name in rates)
    thin = predicted_layout(config, Layout(), spec)
    before, after = (estimate(config, layout, image_size=256) for layout in (Layout(), thin))
    assert after.decode_macs < 0.8 * before.decode_macs and after.encode_macs == before.encode_macs


def test_a_kind_that_a_shape_lacks_may_be_named_but_not_one_that_the_spec_leaves_out():
    config = VARIANTS["dc-ae-lite-f32c32"]
    assert not any(site.kind == "hidden" for site in sites(config).values() if site.coder == "decoder")
    assert site_rates(config, PruneSpec(part="decoder", rate=0.5, site_rates={"decoder.hidden": 0.7}))
    with pytest.raises(CoreError, match="would have no effect"):
        site_rates(config, PruneSpec(part="decoder", kinds=("mid",), rate=0.5, site_rates={"decoder.stream": 0.7}))


def test_refusals_say_why():
    model = MODELS["dc-ae-f32c32-in"]
    spec = PruneSpec(method="l2_structured", rate=0.5)
    plan = make_plan(model.config, Layout(), score_units(model, "l2"), spec, parent="m_a")
    assert Plan.from_json(plan.to_json()) == plan
    narrower = plan.apply_to(model.config, Layout())
    with pytest.raises(CoreError, match="made for another model"):
        plan.apply_to(model.config, narrower)
    wider = VARIANTS["dc-ae-f32c32-sana-1.0"]
    with pytest.raises(CoreError, match="the configs differ") as caught:
        plan.apply_to(wider, Layout())
    assert caught.value.next == "Make a plan for this model."
    old = {key: value for key, value in plan.to_json().items() if key != "config_digest"} | {"version": 1}
    assert Plan.from_json(old).to_json() == old and Plan.from_json(old).apply_to(model.config, Layout()) == narrower
    with pytest.raises(CoreError, match="another version"):
        Plan.from_json({**old, "version": 3})
    with pytest.raises(ConfigError, match="last unit"):
        cut(model.state_dict(), model.config, Layout(), {"encoder.stages.1.blocks.0.mid": ()})
    with pytest.raises(ConfigError, match="no site"):
        cut(model.state_dict(), model.config, Layout(), {"encoder.nowhere": (0,)})
    with pytest.raises(CoreError, match="no site"):
        site_rates(model.config, PruneSpec(site_rates={"middle": 0.3}))
    for idle in ({"site_rates": {"stream": 0.3}}, {"part": "decoder", "site_rates": {"encoder.stages.1": 0.3}}):
        with pytest.raises(CoreError, match="no effect"):
            site_rates(model.config, PruneSpec.model_validate(idle))
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
