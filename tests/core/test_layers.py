"""Parts and layers: what is measured of them while a model trains, and new weights for some of them as a new model."""

from __future__ import annotations

import pytest
import torch

import store as st
from core.errors import CoreError
from core.operations.models import load
from core.specs import ResetSpec
from dcaecore import DCAE, VARIANTS
from dcaecore.freezing import part_names
from dcaecore.layer_stats import LayerWatch

FIELDS = {
    "image_size": 32, "batch_size": 2, "n_epochs": 2, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-3, "val_steps": 4,
    "num_workers": 0, "keep": "last",
}  # fmt: skip
PARTS = part_names(VARIANTS["tiny"])


@pytest.fixture(scope="module")
def parent(bench):
    return bench.add().id


def test_each_part_is_measured_at_validations_and_the_weights_are_the_same(bench, service, parent):
    plain = bench.run("retrain", parent, **FIELDS)
    assert service.layer_figures(plain.id) == []
    job = bench.run("retrain", parent, **FIELDS, layer_stats=True, frozen_stages=["encoder.conv_in"])
    found = {row["part"]: row for row in service.layer_figures(job.id)}
    assert tuple(found) == PARTS
    assert "gradient_rms" not in found["encoder.conv_in"] and found["decoder.conv_out"]["gradient_rms"] > 0
    made = load(bench.store, job.model_id).model
    for part in PARTS:
        weights = [p.detach() for p in made.get_submodule(part).parameters() if p.ndim > 1]
        rms = (sum(p.square().sum() for p in weights) / sum(p.numel() for p in weights)).sqrt()
        assert found[part]["weight_rms"] == pytest.approx(float(rms), rel=1e-4)
        assert found[part]["activation_rms"] > 0 and 0 <= found[part]["dead_ratio"] < 1
    steps = st.metrics.series(bench.store, job.id, "weight_rms.decoder.conv_out")[0]
    assert list(steps) == [0, 2, 4]
    # Only measuring changes nothing.
    assert bench.run("retrain", parent, **FIELDS, layer_stats=True).model_id == plain.model_id


def test_dead_channels_are_counted():
    model = DCAE(VARIANTS["tiny"]).eval()
    with torch.no_grad():
        model.decoder.conv_in.weight[:2] = 0
        model.decoder.conv_in.bias[:2] = 0
    with LayerWatch(model).activations() as found, torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    assert found["dead_ratio.decoder.conv_in"] == pytest.approx(2 / model.decoder.conv_in.weight.shape[0])


def test_a_part_or_single_units_get_new_weights_and_the_rest_stays_to_the_bit(bench, service, parent):
    trained = bench.run("retrain", parent, **FIELDS).model_id
    before = load(bench.store, trained).model.state_dict()
    original = load(bench.store, parent).model.state_dict()

    def reset(**fields):
        service.reset_layers(trained, fields)
        return load(bench.store, bench.perform(bench.claim()).model_id)

    back = reset(layers=["decoder.conv_out", "encoder.stages.2"], to="parent")
    for name, value in back.model.state_dict().items():
        chosen = name.startswith(("decoder.conv_out.", "encoder.stages.2."))
        assert torch.equal(value, original[name] if chosen else before[name]), name
    assert list(back.row.parents) == [("parent", trained)]
    few = reset(layers=["decoder.conv_in"], units=[0, 3], seed=5).model.state_dict()["decoder.conv_in.weight"]
    moved = [not torch.equal(a, b) for a, b in zip(few, before["decoder.conv_in.weight"], strict=True)]
    assert [place for place, value in enumerate(moved) if value] == [0, 3]
    assert reset(layers=["decoder.conv_out"], seed=1).row.id != reset(layers=["decoder.conv_out"], seed=2).row.id


def test_a_reset_that_cannot_be_is_told(bench, service, parent):
    for fields, told in (
        ({"layers": ["decoder.nothing"]}, "no layer"),
        ({"layers": ["encoder.conv_in"], "units": [10_000]}, "units"),
        ({"layers": ["encoder.conv_in"], "to": "parent"}, "is a baseline"),
    ):
        with pytest.raises(CoreError, match=told):
            service.reset_layers(parent, fields)
        with pytest.raises(CoreError, match=told):
            bench.run("reset", parent, **fields)
    narrow = bench.run("prune", parent, rate=0.5).model_id
    service.reset_layers(narrow, {"layers": ["decoder.stages.1"], "to": "baseline"})
    with pytest.raises(CoreError, match="narrower"):
        bench.perform(bench.claim())
    with pytest.raises(CoreError, match="Name at least one layer"):
        service.reset_layers(parent, {})
    names = service.layer_names(parent)
    assert names[: len(PARTS)] == PARTS and "decoder.stages.1.blocks.0.conv1" in names and len(set(names)) == len(names), names
    with pytest.raises(ValueError, match="seed would have no effect"):
        ResetSpec(layers=("encoder.conv_in",), to="parent", seed=3)


def test_a_reset_keeps_masked_weights_at_zero(bench, service):
    torch.manual_seed(0)
    model = DCAE(VARIANTS["tiny"])
    masks = {name: torch.rand(p.shape) > 0.5 for name, p in model.named_parameters() if p.ndim > 1}
    sparse = bench.add(name="sparse", masks=masks)
    service.reset_layers(sparse.id, {"layers": ["decoder.conv_out"]})
    made = load(bench.store, bench.perform(bench.claim()).model_id)
    assert all(not (made.model.state_dict()[name] * ~mask).any() for name, mask in made.masks.items())
    assert made.masks.keys() == masks.keys()
