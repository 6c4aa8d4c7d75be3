"""Import: what was found is told, what does not apply is refused, and the stored weights are the file's."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from core.errors import CoreError
from core.operations.models import load
from dcaecore import DCAE, VARIANTS, CheckpointError, Layout, load_model, save_model
from dcaecore.keys import to_format
from dcaecore.zoo import DEMO_FILE
from tests.core.in_process import InProcess

TINY = VARIANTS["tiny"]


@pytest.fixture
def bench(settings):
    made = InProcess(settings)
    yield made
    made.store.close()


@pytest.fixture
def model():
    torch.manual_seed(3)
    return DCAE(TINY)


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_zoo_shape_with_a_seed_is_the_same_model_each_time(bench):
    first, second, other = (bench.run("import", source="tiny", random_seed=seed) for seed in (4, 4, 5))
    assert first.model_id == second.model_id != other.model_id
    row = load(bench.store, first.model_id).row
    assert row.kind == "baseline" and row.family == "dcae" and row.facts["sparsity"] < 0.01
    assert first.result["variant"] == "tiny" and "seed 4" in first.result["notes"][0]
    assert row.facts["parameters"] == sum(p.numel() for p in DCAE(TINY).parameters())


@pytest.mark.parametrize("fmt", ["original", "diffusers"])
def test_published_keys_are_converted_and_said(bench, model, tmp_path, fmt):
    state = {name: value.contiguous() for name, value in to_format(model.state_dict(), TINY, fmt).items()}
    save_file(state, tmp_path / "weights.safetensors")
    job = bench.run("import", source=str(tmp_path / "weights.safetensors"))
    assert job.result["key_format"] == fmt and any(fmt in note for note in job.result["notes"])
    assert any(fmt in line["message"] for line in bench.log(job))
    assert same(load(bench.store, job.model_id).model.state_dict(), model.state_dict())


def test_a_file_of_ours_keeps_its_masks_and_may_be_half_precision(bench, model, tmp_path):
    masks = {"encoder.conv_out.weight": torch.rand_like(model.encoder.conv_out.weight) > 0.5}
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    state["encoder.conv_out.weight"] = state["encoder.conv_out.weight"].masked_fill(~masks["encoder.conv_out.weight"], 0.0)
    save_model(tmp_path / "ours.safetensors", state, config=TINY, layout=Layout(), masks=masks)
    job = bench.run("import", source=str(tmp_path))
    found = load(bench.store, job.model_id)
    assert same(found.model.state_dict(), {name: value.float() for name, value in state.items()})
    assert same(found.masks, masks) and job.result["masks"] == 1 and found.row.facts["sparsity"] > 0


def test_the_demo_model(bench):
    job = bench.run("import")
    assert job.result["variant"] == "demo-f32c32"
    assert same(load(bench.store, job.model_id).model.state_dict(), load_model(DEMO_FILE).model.state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "tiny"}, "random_seed"),
        ({"source": "tiny", "random_seed": 0, "revision": "main"}, "revision"),
        ({"source": "demo", "revision": "main"}, "revision"),
        ({"source": "demo", "random_seed": 0}, "Random weights"),
    ],
)
def test_options_that_do_not_apply_are_refused(bench, fields, message):
    with pytest.raises(CoreError) as caught:
        bench.run("import", **fields)
    assert message in f"{caught.value.message} {caught.value.next}" and caught.value.legal
    assert bench.store.rows("SELECT id FROM model") == []


def test_a_file_that_is_no_checkpoint_makes_no_model(bench, tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="noise.safetensors"):
        bench.run("import", source=str(tmp_path / "noise.safetensors"))
    assert bench.store.rows("SELECT id FROM model") == []
