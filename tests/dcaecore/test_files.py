"""Model files: bit-equal round trips, both key formats on disk, and one clear message for each bad file."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from dcaecore import DCAE, VARIANTS, CheckpointError, Layout, from_pretrained, load_model, save_model, weights_digest
from dcaecore.checkpoint import file_digest
from dcaecore.keys import to_format

TINY = VARIANTS["tiny"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DCAE(TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal_and_files_are_reproducible(tmp_path, model, dtype):
    state = {k: v.to(dtype, copy=True) for k, v in model.state_dict().items()}
    masks = {"encoder.conv_out.weight": torch.rand_like(model.encoder.conv_out.weight) > 0.5}
    state["encoder.conv_out.weight"][~masks["encoder.conv_out.weight"]] = 0
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_model(path, state, config=TINY, layout=Layout(), masks=masks)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = load_model(paths[0], dtype=dtype)
    assert all(torch.equal(value, loaded.model.state_dict()[key]) for key, value in state.items())
    assert torch.equal(loaded.masks["encoder.conv_out.weight"], masks["encoder.conv_out.weight"])
    assert file_digest(paths[0]) == weights_digest(state, masks) != weights_digest(state)


@pytest.mark.parametrize("fmt", ["original", "diffusers", "offshoot"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_format_is_recognised(tmp_path, model, fmt, suffix):
    state = model.state_dict() if fmt == "offshoot" else to_format(model.state_dict(), TINY, fmt)
    state = {k: v.contiguous() for k, v in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        wrapped = {f"module.{k}": v for k, v in state.items()}
        torch.save({"state_dict": wrapped, "epoch": 3}, path)
    else:
        save_file(state, path)
    found = from_pretrained(path)
    assert found.variant == "tiny" and found.key_format == fmt
    assert bool(found.notes) == (fmt != "offshoot" or suffix == ".pth")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(found.model(x), model.eval()(x))
    assert from_pretrained(tmp_path).variant == "tiny"


def test_leftover_masks_are_folded(tmp_path, model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    weight = state.pop("encoder.conv_out.weight")
    mask = (torch.rand_like(weight) > 0.5).float()
    state |= {"encoder.conv_out.weight_orig": weight, "encoder.conv_out.weight_mask": mask}
    torch.save(state, tmp_path / "pruned.pth")
    found = from_pretrained(tmp_path / "pruned.pth")
    assert torch.equal(found.model.encoder.conv_out.weight, weight * mask)
    assert any("masks folded" in note for note in found.notes)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_bad_files_say_so(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.safetensors"
    save_model(good, model.state_dict(), config=TINY, layout=Layout())
    cases = {
        "cut short": ("short.safetensors", good.read_bytes()[:-100]),
        "no safetensors": ("noise.safetensors", b"this is not a checkpoint at all"),
        "no checkpoint": ("notes.txt", b"hello"),
        "no PyTorch checkpoint": ("noise.pth", b"this is not a checkpoint at all"),
    }
    for message, (name, raw) in cases.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(CheckpointError) as caught:
            from_pretrained(tmp_path / name)
        assert message in caught.value.message or "not executed" in caught.value.message, caught.value.message
    torch.save({"x": Attack()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="not executed"):
        from_pretrained(tmp_path / "evil.pth")
    assert not (tmp_path / "attacked").exists()
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        from_pretrained(tmp_path / "other.safetensors")
    state = dict(model.state_dict())
    state["encoder.conv_out.weight"] = torch.zeros(1, 2, 3, 3)
    save_file(state, tmp_path / "shape.safetensors")
    with pytest.raises(CheckpointError, match="no known shape"):
        from_pretrained(tmp_path / "shape.safetensors")
    with pytest.raises(CheckpointError, match="no model"):
        from_pretrained("no-such-model")
    with pytest.raises(CheckpointError, match="weights files"):
        from_pretrained(tmp_path)
