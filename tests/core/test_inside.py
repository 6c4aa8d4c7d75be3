"""Two models unit by unit, one layer by layer: paired by original coordinates, with figures that are known beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import store as st
from core.errors import CoreError
from core.layers import BINS, MOST_CELLS, _shrunk
from core.operations.models import load, new_model
from core.pruning.units import unit_slices
from core.specs import ImportSpec
from core.stored_weights import StoredWeights
from core.terminal.inside import spark
from core.unit_diff import positions, ranges
from dcaecore import VARIANTS, CheckpointError, Layout, save_model, sites
from store import add_model

CONFIG = VARIANTS["tiny"]


@pytest.fixture(scope="module")
def base(bench):
    return bench.add(name="base").id


def stored(bench, ref, change, name):
    """A model with the weights of another, changed in place by `change(state)`."""
    loaded = load(bench.store, ref)
    state = {key: value.detach().clone() for key, value in loaded.model.state_dict().items()}
    change(state)
    made = new_model(
        bench.store,
        name=name,
        kind="baseline",
        spec=ImportSpec(source=name),
        state=state,
        config=CONFIG,
        layout=loaded.model.layout,
    )
    return add_model(bench.store, made).id


def test_a_model_against_itself_is_the_same(service, base):
    found = service.unit_diff(base, base)
    assert found.identical and found.counts[1:] == (0, 0)
    assert found.counts[0] == sum(site.total for site in sites(CONFIG).values())


def test_units_are_paired_by_their_first_place_whatever_was_cut(service, bench, base):
    once = bench.run("prune", base, rate=0.3, method="l2_structured").model_id
    twice = bench.run("prune", once, rate=0.3, method="l2_structured").model_id
    for first, second in ((base, twice), (once, twice)):
        found = service.unit_diff(first, second)
        rows = [st.get_model(bench.store, ref) for ref in (first, second)]
        layouts = [Layout.from_json(row.layout) for row in rows]
        for one in found.sites:
            site = sites(CONFIG)[one.site]
            own, other = (set(layout.units(site)) for layout in layouts)
            assert set(one.units) == own & other == other and set(one.only_first) == own - other and one.only_second == ()
        # Cutting moves no weight: what is left is what was there.
        assert max(float(one.change.max()) for one in found.sites) == 0.0 and not found.identical


def test_a_cut_stream_shows_what_the_cut_did_to_its_norms_alone(service, bench, base):
    how = {"rate": 0.5, "method": "structured", "score": "l2", "compensate": False, "kinds": ["stream", "mid"]}
    for norms, expected in (("plain", 0.0), ("exact", 1 - 0.5**0.5)):
        found = service.unit_diff(base, bench.run("prune", base, **how, stream_norms=norms).model_id)
        assert any(one.kind == "stream" and one.only_first for one in found.sites)
        changed = [tensor for tensor in found.tensors if tensor.change > 1e-9]
        assert all("norm" in tensor.tensor for tensor in changed) and bool(changed) == (norms == "exact")
        assert all(tensor.change == pytest.approx(expected, rel=1e-6) for tensor in changed)


def test_the_change_of_one_unit_is_that_of_its_weights(service, bench, base):
    site = next(site for site in sites(CONFIG).values() if site.kind == "mid" and site.coder == "decoder")
    stem = site.name.rpartition(".")[0]

    def move(state):
        state[f"{stem}.conv1.weight"][3] *= 2  # half as far as it is long now
        state[f"{stem}.conv2.weight"][:, 5] = 0

    other = stored(bench, base, move, "moved")
    found = {one.site: one for one in service.unit_diff(base, other).sites}
    one = found[site.name]
    weights = load(bench.store, base).model.state_dict()
    row, bias, column = (
        part.double().norm()
        for part in (weights[f"{stem}.conv1.weight"][3], weights[f"{stem}.conv1.bias"][3], weights[f"{stem}.conv2.weight"][:, 3])
    )
    expected = float(row / torch.sqrt(4 * row**2 + bias**2 + column**2))
    assert one.change[3] == pytest.approx(expected) and list(np.flatnonzero(one.change)) == [3, 5]
    assert one.part_change[3].tolist() == pytest.approx([0.5, 0, 0]) and one.part_change[5].tolist() == pytest.approx([0, 0, 1.0])
    assert set(one.units[one.order[:2]]) == {3, 5} and one.norms[3, 0] == pytest.approx(
        float(torch.sqrt(row**2 + bias**2 + column**2))
    )
    streams = [other for other in found.values() if other.kind == "stream" and other.change.any()]
    assert len(streams) == 1 and streams[0].site.startswith(f"decoder.stages.{site.stage}")
    assert not any(one.change.any() for name, one in found.items() if name != site.name and found[name].kind != "stream")
    back = {one.site: one for one in service.unit_diff(other, base).sites}
    assert np.array_equal(back[site.name].change, one.change), "the same whichever is named first"


def test_positions_are_the_slices_of_all_units():
    for site in sites(CONFIG).values():
        units = [site.total - 1, 0] if site.total > 1 else [0]
        found = positions(CONFIG, site)
        for part in unit_slices(CONFIG, Layout(), site, units):
            assert sorted(found[part.tensor, part.dim][units].reshape(-1)) == sorted(part.indices), (site.name, part.tensor)
        for part in unit_slices(CONFIG, Layout(), site, range(site.total)):
            assert len(set(found[part.tensor, part.dim].reshape(-1))) == len(part.indices)


def test_what_cannot_be_paired_is_refused_or_said(service, bench, base):
    unrelated = bench.add(seed=7, name="unrelated").id
    found = service.unit_diff(base, unrelated)
    assert "two baselines" in found.notes[0] and found.by_change[0].mean > 0.5
    decoder = replace(CONFIG.decoder, norms=("bn2d",) * 4, acts=("relu",) * 4)
    other = bench.add(replace(CONFIG, decoder=decoder), name="batchnorm").id
    with pytest.raises(CoreError, match="two configs"):
        service.unit_diff(base, other)


def test_weights_are_read_as_torch_reads_them(bench, base, tmp_path):
    masked = bench.run("prune", base, rate=0.5, method="global_magnitude").model_id
    for ref in (base, masked):
        found = StoredWeights(bench.store.blobs.path(st.get_model(bench.store, ref).blob_digest))
        for name, value in load(bench.store, ref).model.state_dict().items():
            assert np.array_equal(found.array(name), value.numpy()) and found.shape(name) == tuple(value.shape), name
    state = {key: value.to(torch.bfloat16) for key, value in load(bench.store, base).model.state_dict().items()}
    save_model(tmp_path / "half.safetensors", state, config=CONFIG, layout=Layout())
    found = StoredWeights(tmp_path / "half.safetensors")
    assert all(np.array_equal(found.array(name), value.float().numpy()) for name, value in state.items())
    (tmp_path / "x.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(CheckpointError):
        StoredWeights(tmp_path / "x.safetensors")


def test_layers_tell_widths_zeros_and_spread(service, bench, base):
    masked = bench.run("prune", base, rate=0.5, method="global_magnitude").model_id
    cut = bench.run("prune", base, rate=0.5, method="l2_structured").model_id
    state = load(bench.store, masked).model.state_dict()
    for layer in service.layers(masked):
        weight = state[f"{layer.name}.weight"]
        assert layer.after == layer.before == tuple(weight.shape) and layer.zeros == int((weight == 0).sum())
        assert sum(layer.histogram) + layer.zeros == weight.numel() and len(layer.histogram) == BINS
        assert layer.rms == pytest.approx(float(weight.double().square().mean().sqrt()))
        assert len(service.weight_values(masked, layer.name)) == weight.numel() - layer.zeros
        zero = service.sparsity_map(masked, layer.name)
        assert zero.shape == tuple(min(MOST_CELLS, size) for size in weight.shape[:2])
        if zero.shape == weight.shape[:2]:
            assert float(zero.mean()) == pytest.approx(layer.sparsity, abs=1e-6)
    narrower = [layer for layer in service.layers(cut) if layer.before != layer.after]
    assert narrower and all(layer.before == tuple(state[f"{layer.name}.weight"].shape) for layer in narrower)
    with pytest.raises(CoreError, match="no layer"):
        service.sparsity_map(base, "nothing")
    st.delete_model(bench.store, cut)
    with pytest.raises(st.StoreError):
        service.layers(cut)


def test_a_large_map_keeps_its_mean():
    values = np.random.default_rng(0).random((MOST_CELLS * 3, 5))
    small = _shrunk(values, 0)
    assert small.shape == (MOST_CELLS, 5) and np.allclose(small[7], values[21:24].mean(axis=0)) and _shrunk(values, 1) is values
    assert _shrunk(np.ones((MOST_CELLS + 1, 2)), 0).tolist() == [[1.0, 1.0]] * MOST_CELLS


def test_activations_are_those_of_the_model(service, bench, base):
    assert service.activations(base) is None
    size = {"image_size": 32, "num_images": 6}
    asked = service.measure_activations(base, {**size, "batch_size": 4})
    assert bench.perform(bench.claim()).id == asked.id
    found = service.activations(base)
    bench.run("activations", base, **size, batch_size=6)
    again = service.activations(base)
    model, seen = load(bench.store, base).model, {}
    from core.operations.images import open_parts
    from core.specs import ActivationsSpec
    from dcaecore import pin

    class Quiet:
        settings = bench.settings

        def progress(self, *_args, **_options):
            pass

    (part,) = open_parts(ActivationsSpec().data, 32, Quiet(), "validation")
    x = pin(part.cache, part.rows, 6).tensor()
    watched = model.decoder.conv_in
    watched.register_forward_hook(lambda _m, _i, out: seen.setdefault("out", out))
    with torch.inference_mode():
        model(x)
    own = found.layers["decoder.conv_in"]
    out = seen["out"].double()
    assert (own.least, own.largest) == pytest.approx((float(out.min()), float(out.max())), rel=1e-5)
    assert own.mean == pytest.approx(float(out.mean()), rel=1e-4) and own.std == pytest.approx(
        float(out.std(correction=0)), rel=1e-4
    )
    assert sum(own.histogram) == out.numel() and own.channels == out.shape[1] and own.dead == 0
    counts, _ = np.histogram(out.numpy(), bins=BINS)
    assert np.abs(counts - np.array(own.histogram)).sum() <= 0.01 * out.numel()
    assert set(found.layers) <= {layer.name for layer in service.layers(base)} and found.protocol == again.protocol
    for name, layer in found.layers.items():
        assert layer.std == pytest.approx(again.layers[name].std, rel=1e-4)

    def kill(state):
        state["decoder.conv_in.weight"][2] = 0
        state["decoder.conv_in.bias"][2] = 0

    dead = stored(bench, base, kill, "dead")
    bench.run("activations", dead, **size)
    assert service.activations(dead).layers["decoder.conv_in"].dead == 1


def test_words():
    assert ranges((3, 5, 6, 7, 12)) == "3, 5–7, 12" and ranges(()) == "" and ranges((0, 1)) == "0–1"
    assert spark([0, 1, 100]) == " ▁█" and spark((1, 1, 0, 0), 2) == "█ "
