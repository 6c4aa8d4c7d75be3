"""Scores on calibration images, and folding what removed units did into the kept ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CoreError
from core.operations.models import load
from core.pruning.calibration import CalibrationImages, gradients, images_needed, number_of_images, statistics
from core.pruning.compensation import compensate
from core.pruning.plans import kept_count, make_plan
from core.pruning.scores import SCORES, fpgm, lamp, obs, pivoted_qr, score_units, wanda
from core.pruning.surgery import cut, zero
from core.pruning.units import feature_units, folding_layer
from core.specs import PruneSpec
from dcaecore import DCAE, VARIANTS, DataSource, open_frames, sites, split_rows
from dcaecore.layout import INTERNAL_KINDS
from tests.core.test_pruning import EACH, MODELS, SHAPES


def images(size: int = 64, count: int = 2, seed: int = 0) -> CalibrationImages:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    moving = torch.rand(count, 1, size, size, generator=generator) > 0.9
    return CalibrationImages((batch,), (1 + 20 * moving.float(),), (moving,))


def doubles(drawn: CalibrationImages) -> CalibrationImages:
    return CalibrationImages(tuple(b.double() for b in drawn.images), drawn.weights, drawn.foregrounds)


@pytest.fixture
def tiny() -> DCAE:
    torch.manual_seed(0)
    return DCAE(VARIANTS["tiny"]).eval()


def half(
    model: DCAE, score: str = "l2", rate: float = 0.5, kinds: tuple[str, ...] = INTERNAL_KINDS
) -> dict[str, tuple[int, ...]]:
    spec = PruneSpec(method="structured", score=score, rate=rate, kinds=kinds)
    return dict(make_plan(model.config, model.layout, score_units(model, "l2"), spec).keep)


def internal(model: DCAE) -> list[str]:
    return [name for name, site in sites(model.config).items() if site.kind != "stream"]


@pytest.mark.parametrize("name", EACH)
def test_a_compensated_cut_equals_its_mask(name):
    model = copy.deepcopy(MODELS[name])
    keep = half(model)
    drawn = doubles(images(model.config.spatial_compression))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = compensate(model, keep, drawn)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the dense model is not touched"
    masked = DCAE(model.config).double().eval()
    masked.load_state_dict(zero(state, model.config, model.layout, keep))
    assert all(torch.equal(value, state[key]) for key, value in masked.state_dict().items()), "removed units are zero already"
    result = cut(state, model.config, model.layout, keep)
    narrow = DCAE(model.config, result.layout).double().eval()
    narrow.load_state_dict(result.state)
    side = model.config.spatial_compression
    x = torch.rand(1, 3, side, 2 * side, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        assert float((narrow(x) - masked(x)).norm() / masked(x).norm()) < 1e-12


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", EACH)
def test_a_fold_goes_with_cut_streams(name, exact):
    """Removed units are zero in what was fitted, the readers of a cut stream included, and the cut takes exactly that."""
    model = copy.deepcopy(MODELS[name])
    keep = half(model, kinds=(*INTERNAL_KINDS, "stream"))
    state = compensate(model, keep, doubles(images(model.config.spatial_compression)), exact_norms=exact)
    zeroed = zero(state, model.config, model.layout, keep)
    assert all(torch.equal(value, state[key]) for key, value in zeroed.items())
    of_zeroed, of_fitted = (cut(w, model.config, model.layout, keep, exact_norms=exact).state for w in (zeroed, state))
    assert all(torch.equal(value, of_fitted[key]) for key, value in of_zeroed.items())


@pytest.mark.parametrize("exact", [True, False])
def test_a_fold_with_cut_streams_comes_nearer_to_the_whole_model(tiny, exact):
    """On a network of random weights no more can be promised; on a trained one it is measured (benchmarks)."""
    keep = half(tiny, kinds=(*INTERNAL_KINDS, "stream"), rate=0.25)
    drawn = images(128)
    errors = {}
    with torch.no_grad():
        whole = tiny(drawn.images[0])
        for kind, weights in (("fitted", compensate(tiny, keep, drawn, exact_norms=exact)), ("plain", tiny.state_dict())):
            result = cut(weights, tiny.config, tiny.layout, keep, exact_norms=exact)
            narrow = DCAE(tiny.config, result.layout).eval()
            narrow.load_state_dict(result.state)
            errors[kind] = float((narrow(drawn.images[0]) - whole).norm())
    assert errors["fitted"] < errors["plain"]


def test_a_copy_of_a_kept_channel_is_replaced_without_loss(tiny):
    site = sites(tiny.config)["encoder.stages.1.blocks.0.mid"]
    block = dict(tiny.named_modules())["encoder.stages.1.blocks.0"]
    with torch.no_grad():
        block.conv1.weight[3] = block.conv1.weight[1]
        block.conv1.bias[3] = block.conv1.bias[1]
    keep = {site.name: tuple(u for u in range(tiny.layout.width(site)) if u != 3)}
    drawn = images()
    with torch.no_grad():
        dense = tiny(drawn.images[0])
        cut_off, folded = DCAE(tiny.config).eval(), DCAE(tiny.config).eval()
        cut_off.load_state_dict(zero(tiny.state_dict(), tiny.config, tiny.layout, keep))
        folded.load_state_dict(compensate(tiny, keep, drawn, ridge=1e-9))
        assert float((folded(drawn.images[0]) - dense).norm() / dense.norm()) < 1e-5
        assert float((cut_off(drawn.images[0]) - dense).norm() / dense.norm()) > 1e-3


def test_the_fit_lowers_the_error_of_the_layer_and_follows_the_weights(tiny):
    """Against a plain numpy least-squares fit of the same layer."""
    site = sites(tiny.config)["decoder.stages.1.blocks.0.mid"]
    layer = folding_layer(site)
    keep = {site.name: tuple(range(0, tiny.layout.width(site), 2))}
    drawn = images(count=4)
    state = compensate(tiny, keep, drawn, ridge=1e-12)
    seen: list[torch.Tensor] = []
    handle = dict(tiny.named_modules())[layer].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tiny(drawn.images[0])
    handle.remove()
    x = seen[0].permute(0, 2, 3, 1).reshape(-1, seen[0].shape[1]).double().numpy()
    small = torch.nn.functional.adaptive_avg_pool2d(drawn.weights[0], seen[0].shape[-2:]).reshape(-1, 1).double().sqrt().numpy()
    kept = list(keep[site.name])
    fit = np.linalg.lstsq(x[:, kept] * small, x * small, rcond=None)[0]
    weight = tiny.state_dict()[f"{layer}.weight"].double().numpy()
    expected = np.einsum("ofij,kf->okij", weight, fit)
    assert np.allclose(state[f"{layer}.weight"].numpy()[:, kept], expected, atol=1e-4)
    uniform = CalibrationImages(drawn.images, (torch.ones_like(drawn.weights[0]),), drawn.foregrounds)
    other = compensate(tiny, keep, uniform, ridge=1e-12)
    assert not torch.allclose(other[f"{layer}.weight"], state[f"{layer}.weight"], atol=1e-5), "pixel weights matter"


@pytest.mark.parametrize("name", EACH)
def test_each_site_is_fitted_to_what_reaches_it_in_the_end(name):
    """A site whose inputs changed after it was fitted would fit something else: sites are fitted in the order of the data."""
    model = copy.deepcopy(MODELS[name])
    keep, drawn = half(model), doubles(images(2 * model.config.spatial_compression))
    state = compensate(model, keep, drawn, ridge=1e-2)
    done = DCAE(model.config).double().eval()
    done.load_state_dict(state)
    layers = [folding_layer(sites(model.config)[name]) for name in keep]
    seen: dict[tuple[str, bool], torch.Tensor] = {}
    for one in (model, done):
        for layer in layers:
            take = lambda _m, inputs, key=(layer, one is done): seen.update({key: inputs[0]})  # noqa: E731
            one.get_submodule(layer).register_forward_pre_hook(take)
        with torch.no_grad():
            one(drawn.images[0])
    for name, layer in zip(keep, layers, strict=True):
        x, y = (seen[layer, late].permute(0, 2, 3, 1).reshape(-1, seen[layer, late].shape[1]) for late in (False, True))
        kept = feature_units(model.config, model.layout, sites(model.config)[name]).of_unit[list(keep[name])].reshape(-1)
        y = y[:, np.sort(kept)]
        size = seen[layer, False].shape[-2:]
        w = torch.nn.functional.adaptive_avg_pool2d(drawn.weights[0].double(), size).reshape(-1, 1)
        gram, cross = y.T @ (y * w), y.T @ (x * w)
        small = 1e-2 * gram.diagonal().mean()
        cross[torch.arange(len(kept)), torch.from_numpy(np.sort(kept))] += small
        fit = torch.linalg.solve(gram + small * torch.eye(len(kept)), cross)
        expected = torch.einsum("ofij,kf->okij", model.state_dict()[f"{layer}.weight"], fit)
        assert torch.allclose(state[f"{layer}.weight"][:, np.sort(kept)], expected, rtol=1e-6, atol=1e-8), name


def test_only_what_lies_behind_a_cut_stream_is_fitted_anew(tiny):
    before = tiny.state_dict()
    deepest = max(s.stage for s in sites(tiny.config).values())
    state = compensate(tiny, {f"decoder.stages.{deepest - 1}.stream": (0, 1, 2)}, images())
    changed = {name.split(".blocks")[0] for name in before if ".blocks." in name and not torch.equal(before[name], state[name])}
    assert changed and all(part.startswith("decoder.stages.") and int(part.split(".")[2]) < deepest for part in changed)


def test_masked_weights_stay_zero_under_a_fold(tiny):
    masks = {f"{folding_layer(s)}.weight": torch.rand(tiny.state_dict()[f"{folding_layer(s)}.weight"].shape) > 0.5
             for s in sites(tiny.config).values() if s.kind != "stream"}  # fmt: skip
    tiny.load_state_dict({k: v * masks[k] if k in masks else v for k, v in tiny.state_dict().items()})
    state = compensate(tiny, half(tiny), images(), masks=masks)
    assert all(not (state[name] * ~mask).any() for name, mask in masks.items())


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 7), st.integers(1, 3), st.integers(0, 1000))
def test_obs_eliminates_what_least_squares_misses_least(units, per_unit, seed):
    generator = np.random.default_rng(seed)
    features = units * per_unit
    x = generator.normal(size=(200, features)) @ (np.eye(features) + 0.3 * generator.normal(size=(features, features)))
    weight = generator.normal(size=(5, features, 1, 1))
    owned = np.arange(features).reshape(units, per_unit)
    gram = x.T @ x / len(x)
    scores = obs(weight, gram, owned, ridge=1e-10)
    flat = weight[:, :, 0, 0]
    target = x @ flat.T

    def error(gone: list[int]) -> float:
        kept = [f for u in range(units) if u not in gone for f in owned[u]]
        fit = np.linalg.lstsq(x[:, kept], target, rcond=None)[0]
        return float(((x[:, kept] @ fit - target) ** 2).sum(1).mean())

    gone: list[int] = []
    for unit in np.argsort(scores, kind="stable")[: units - 1]:
        best = min((u for u in range(units) if u not in gone), key=lambda u: error([*gone, u]))
        assert error([*gone, int(unit)]) == pytest.approx(error([*gone, best]), rel=1e-5)
        gone.append(int(unit))
        assert scores[unit] == pytest.approx(error(gone), rel=1e-4)


def test_lamp_fpgm_wanda_and_qr_by_hand():
    assert lamp(np.array([1.0, 2.0, 2.0])) == pytest.approx([1 / 9, 4 / 8, 1.0])
    assert fpgm(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])) == pytest.approx([9.0, 8.0, 7.0])
    x = np.array([[2.0, 2.0, 0.0], [0.0, 1e-3, 1.0], [0.0, 0.0, 0.0]])
    weight = np.array([[3.0, 1.0, 0.0], [4.0, 0.0, 2.0]])[:, :, None, None]
    gram = np.diag([1.0, 9.0, 4.0]) + 0.3
    norms = np.sqrt([25 * 1.3, 1 * 9.3, 4 * 4.3])
    assert wanda(weight, gram, np.arange(3)[:, None]) == pytest.approx(norms), "columns' norms times activations'"
    assert wanda(weight, gram, np.array([[0, 2]])) == pytest.approx(np.hypot(norms[0], norms[2])), "a unit of two channels"
    order = np.argsort(-pivoted_qr(np.ones((1, 3, 1, 1)), x.T @ x, np.arange(3)[:, None]))
    assert list(order) == [1, 2, 0], "the first channel adds nothing to the other two"


def test_taylor_is_the_loss_that_a_unit_carries(tiny):
    drawn = images(count=3)
    pull = gradients(tiny, drawn, foreground_weight=21.0)
    scores = score_units(tiny, "taylor", gradients=pull)
    state = tiny.state_dict()
    name = "encoder.stages.1.blocks.0"
    by_hand = sum(
        (pull[f"{name}.{part}"] * state[f"{name}.{part}"])
        .double()
        .movedim(dim, 0)
        .reshape(tiny.config.encoder.widths[1], -1)
        .sum(1)
        for part, dim in (("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1))
    )
    assert scores[f"{name}.mid"] == pytest.approx(by_hand.abs().numpy(), rel=1e-6)
    assert all(p.grad is None for p in tiny.parameters())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", SHAPES[:2])
def test_every_score_ranks_every_site(name, score):
    model = copy.deepcopy(MODELS[name]).float()
    drawn = images(model.config.spatial_compression)
    found = score_units(
        model, score, statistics=statistics(model, drawn, internal(model)),
        gradients=gradients(model, drawn, foreground_weight=1.0), seed=1,
    )  # fmt: skip
    for site_name, site in sites(model.config).items():
        assert found[site_name].shape == (model.layout.width(site),) and np.isfinite(found[site_name]).all()
    again = score_units(model, "random", seed=1)
    other = score_units(model, "random", seed=2)
    assert all(np.array_equal(again[n], score_units(model, "random", seed=1)[n]) for n in again)
    assert any(not np.array_equal(again[n], other[n]) for n in again)


def test_features_of_a_head_are_its_columns_in_every_scale():
    model = MODELS["dc-ae-f32c32-sana-1.0"]
    name, site = next(
        (n, s) for n, s in sites(model.config).items() if s.kind == "heads" and model.config.encoder.scales[s.stage]
    )
    dim, heads = model.config.encoder.head_dim, model.layout.width(site)
    owned = feature_units(model.config, model.layout, site).of_unit
    assert owned.shape == (heads, 2 * dim)
    assert list(owned[1][:dim]) == list(range(dim, 2 * dim)) and owned[1][dim] == heads * dim + dim
    assert sorted(owned.reshape(-1)) == list(range(2 * heads * dim))


@pytest.mark.parametrize("scope", ["kind", "global"])
def test_sites_ranked_together_lose_the_asked_share(tiny, scope):
    spec = PruneSpec(method="structured", score="l2", scope=scope, rate=0.5)
    plan = make_plan(tiny.config, tiny.layout, score_units(tiny, "l2"), spec)
    known = sites(tiny.config)
    local = sum(kept_count(tiny.layout.width(s), 0.5) for s in known.values() if s.kind != "stream")
    assert sum(map(len, plan.keep.values())) == local
    assert all(len(units) >= 0.1 * known[name].total for name, units in plan.keep.items())
    shares = {round(len(units) / known[name].total, 3) for name, units in plan.keep.items()}
    assert len(shares) > 1, "sites differ"


@pytest.mark.parametrize("name", EACH)
def test_pixels_of_an_image_are_those_that_statistics_see(name):
    model = copy.deepcopy(MODELS[name]).float()
    size = model.config.spatial_compression * 2
    found = statistics(model, images(size, count=1), internal(model))
    for site, seen in found.items():
        unknowns = model.layout.width(sites(model.config)[site]) * feature_units(
            model.config, model.layout, sites(model.config)[site]
        ).per_unit  # fmt: skip
        needed, _ = images_needed(model.config, model.layout, {site: model.layout.width(sites(model.config)[site])}, size)
        assert needed == -(-unknowns // seen.pixels)


def test_too_few_images_say_how_many_it_needs(tiny):
    kept = {name: sites(tiny.config)[name].total for name in internal(tiny)}
    needed = images_needed(tiny.config, tiny.layout, kept, 16)
    with pytest.raises(CoreError, match="too few") as caught:
        number_of_images(needed[0] - 1, needed)
    assert str(needed[0]) in str(caught.value.legal) and needed[1] in caught.value.message
    assert number_of_images(needed[0], needed) == needed[0]
    assert number_of_images(None, needed) == max(32, 2 * needed[0]) and number_of_images(None, (100, "")) == 200


@pytest.mark.parametrize("score", ["obs", "taylor", "random"])
def test_the_operation_keeps_the_plan_and_the_data_on_record(bench, score):
    parent = bench.add()
    job = bench.run("prune", parent.id, method="structured", score=score, rate=0.5, calibration_images=16, calibration_size=64)
    made = load(bench.store, job.model_id)
    assert f"_{score}structured_0.50_" in made.row.name
    assert 0.4 < job.result["achieved_rate"] <= 0.5
    assert made.row.dataset["location"] == "mspacman" and made.row.dataset["image_size"] == 64
    frames = open_frames(DataSource(location="mspacman"), cache_folder=bench.settings.data_folder)
    trained_on = frames.identity(split_rows(frames).train)
    assert made.row.dataset["rows_sha256"] == trained_on["rows_sha256"], "calibration images are training images"
    assert any("16 calibration images" in line["message"] for line in bench.log(job))
    images = {} if score == "random" else {"calibration_images": 16, "calibration_size": 64}
    plain = bench.run("prune", parent.id, method="structured", score=score, rate=0.5, compensate=False, **images)
    assert plain.model_id != job.model_id
