"""Residual streams: a cut equals the masked dense model, shortcuts included, on every shape; costs and files follow."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.pruning.plans import achieved, kept_count, make_plan, predicted_layout
from core.pruning.scores import score_units
from core.pruning.surgery import cut, zero
from core.specs import PruneSpec
from dcaecore import DCAE, VARIANTS, Layout, estimate, load_model, save_model, sites
from tests.core.test_pruning import MODELS, random_model

ALL = {**MODELS, "tiny": random_model(VARIANTS["tiny"])}
KINDS = ("mid", "hidden", "heads", "stream")


def masked(model: DCAE, keep: dict[str, tuple[int, ...]]) -> DCAE:
    """The dense model with zeroed weights, and its streams held at zero wherever one is read: shortcuts have no weights to zero."""
    found = copy.deepcopy(model)
    found.load_state_dict(zero(model.state_dict(), model.config, model.layout, keep))
    modules = dict(found.named_modules())
    for name, units in keep.items():
        site = sites(model.config)[name]
        if site.kind != "stream":
            continue
        gate = torch.zeros(model.config.coder(site.coder).widths[site.stage], 1, 1, dtype=torch.float64)
        for unit in units:
            gate[unit * site.channels : (unit + 1) * site.channels] = 1
        coder, stage = modules[site.coder], modules[f"{site.coder}.stages.{site.stage}"]
        readers = list(stage.blocks)
        if site.coder == "encoder":
            readers.append(stage.down if hasattr(stage, "down") else coder.conv_out)
            if not hasattr(stage, "down") and coder.average is not None:
                readers.append(coder.average)
        else:
            first = model.config.decoder.first_stage
            readers.append(coder.norm_out if site.stage == first else modules[f"decoder.stages.{site.stage - 1}"].up)

        def hold(_module: torch.nn.Module, inputs: tuple[Tensor, ...], gate: Tensor = gate) -> tuple[Tensor, ...]:
            return (inputs[0] * gate,)

        for reader in readers:
            reader.register_forward_pre_hook(hold)
    return found


@st.composite
def keeps(draw, model: DCAE):
    found = {}
    for name, site in sites(model.config).items():
        if draw(st.booleans()):
            total = model.layout.width(site)
            found[name] = tuple(sorted(draw(st.sets(st.integers(0, total - 1), min_size=1))))
    return found


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_a_cut_equals_its_mask_with_streams(name, data):
    model = ALL[name]
    keep = data.draw(keeps(model))
    result = cut(model.state_dict(), model.config, model.layout, keep)
    narrow = DCAE(model.config, result.layout).double().eval()
    narrow.load_state_dict(result.state)
    step = model.config.spatial_compression
    x = torch.rand(1, 3, step, 2 * step, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected, found = masked(model, keep)(x), narrow(x)
    assert float((found - expected).norm() / expected.norm()) < 1e-10
    cost = estimate(model.config, result.layout, image_size=step)
    assert cost.parameters == sum(p.numel() for p in narrow.parameters())
    assert cost.parameters + cost.buffers == sum(v.numel() for v in narrow.state_dict().values())


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_two_cuts_are_their_composition(name, data):
    model = ALL[name]
    first = cut(model.state_dict(), model.config, model.layout, data.draw(keeps(model)))
    between = DCAE(model.config, first.layout)
    second_keep = data.draw(keeps(between))
    second = cut(first.state, model.config, first.layout, second_keep)
    known = sites(model.config)
    at_once = {n: tuple(second.layout.units(known[n])) for n in second.layout.kept}
    direct = cut(model.state_dict(), model.config, model.layout, at_once)
    assert direct.layout.digest() == second.layout.digest()
    for key, value in direct.state.items():
        assert torch.allclose(value, second.state[key], rtol=1e-12, atol=0), key


@pytest.mark.parametrize("name", ALL)
def test_a_plan_over_every_kind_keeps_the_rule_the_file_and_the_gradients(name, tmp_path):
    model = copy.deepcopy(ALL[name]).float()
    spec = PruneSpec(rate=0.5, kinds=KINDS)
    plan = make_plan(model.config, Layout(), score_units(model, "l2"), spec)
    for site_name, site in sites(model.config).items():
        assert len(plan.keep[site_name]) == kept_count(site.total, 0.5)
    assert 0.3 < achieved(model.config, Layout(), plan) <= 0.5
    result = cut(model.state_dict(), model.config, Layout(), plan.keep)
    predicted = predicted_layout(model.config, Layout(), spec)
    assert estimate(model.config, predicted, image_size=128).macs == estimate(model.config, result.layout, image_size=128).macs
    path = tmp_path / "narrow.safetensors"
    save_model(path, result.state, config=model.config, layout=result.layout)
    loaded = load_model(path).model
    side = max(64, model.config.spatial_compression)
    x = torch.rand(2, 3, side, side) * 2 - 1
    loaded(x).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in loaded.parameters())
    assert loaded.encode(x).shape[1] == model.config.latent_channels and loaded(x).shape == x.shape


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ALL)
def test_one_half_pruned_leaves_the_other_and_the_channels_between_them(name, part):
    model = ALL[name]
    plan = make_plan(model.config, Layout(), score_units(model, "l2"), PruneSpec(rate=0.5, kinds=KINDS, part=part))
    result, state = cut(model.state_dict(), model.config, Layout(), plan.keep), model.state_dict()
    assert all(site.startswith(part) for site in plan.keep)
    whole = [key for key in state if not key.startswith(part)]
    assert whole and all(torch.equal(result.state[key], state[key]) for key in whole)
    ends = {"encoder": ("encoder.conv_out", 0, "latent_channels"), "decoder": ("decoder.conv_in", 1, "latent_channels")}
    layer, axis, channels = ends[part]
    assert result.state[f"{layer}.weight"].shape[axis] == getattr(model.config, channels)
    kept = result.state[f"{layer}.weight"].shape
    assert kept[1 - axis] < state[f"{layer}.weight"].shape[1 - axis], "the stream beside the latents did go"


def test_plain_norms_norm_what_is_left():
    model = ALL["tiny"]
    keep = {"decoder.stages.1.stream": tuple(range(8))}
    exact = cut(model.state_dict(), model.config, Layout(), keep).state["decoder.norm_out.weight"]
    plain = cut(model.state_dict(), model.config, Layout(), keep, exact_norms=False).state["decoder.norm_out.weight"]
    assert torch.allclose(exact, plain * 2**0.5) and torch.equal(plain, model.state_dict()["decoder.norm_out.weight"][:8])


@pytest.mark.parametrize("score", ["l1", "lamp", "fpgm"])
def test_weight_scores_rank_streams_by_hand(score):
    model = ALL["tiny"]
    site = sites(model.config)["encoder.stages.2.stream"]
    assert site.channels == 4 and site.total == 8
    found = score_units(model, score, names=[site.name])[site.name]
    assert found.shape == (8,)
    if score == "l1":
        state, rows = model.state_dict(), slice(4, 8)
        block = "encoder.stages.2.blocks.0"
        by_hand = (
            state["encoder.stages.1.down.conv.weight"][1].abs().sum()
            + state[f"{block}.conv1.weight"][:, rows].abs().sum()
            + state[f"{block}.conv2.weight"][rows].abs().sum()
            + state["encoder.stages.2.down.conv.weight"][:, rows].abs().sum()
        )
        assert found[1] == pytest.approx(float(by_hand))
