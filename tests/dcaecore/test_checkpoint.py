"""Model files that are damaged, foreign or of another version; what a half-written one leaves behind."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.pruning.masks import apply_masks, prune_weights
from dcaecore import DCAE, VARIANTS, CheckpointError, ConfigError, Layout, load_model, read_header, save_model, weights_digest
from dcaecore.checkpoint import KEY, build, file_digest, load_tensors, split_masks
from dcaecore.zoo import DEMO_FILE

TINY = VARIANTS["tiny"]
WEIGHT = "encoder.conv_out.weight"


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.manual_seed(0)
    model = DCAE(TINY, Layout({"encoder.stages.3.blocks.0.heads": (1,)}))
    path = tmp_path / "model.safetensors"
    mask = torch.rand(model.state_dict()[WEIGHT].shape) > 0.5
    state = model.state_dict() | {WEIGHT: model.state_dict()[WEIGHT].masked_fill(~mask, 0.0)}
    save_model(path, state, config=TINY, layout=model.layout, masks={WEIGHT: mask}, extra={"note": "x"})
    return path


def rewrite(path: Path, change) -> None:
    """Saves a file's tensors again with a header that `change` edited, or with the text that it returns."""
    header = read_header(path)
    text = change(header)
    save_file(load_file(path), path, metadata={KEY: text if isinstance(text, str) else json.dumps(header)})


def test_the_header_is_one_sorted_key(saved):
    (length,) = struct.unpack("<Q", saved.read_bytes()[:8])
    metadata = json.loads(saved.read_bytes()[8 : 8 + length])["__metadata__"]
    assert list(metadata) == [KEY]
    header = json.loads(metadata[KEY])
    assert metadata[KEY] == json.dumps(header, sort_keys=True, separators=(",", ":"))
    assert set(header) == {"format", "family", "config", "layout", "masks", "note"} and header["note"] == "x"
    assert read_header(saved) == header


def test_a_thinned_masked_model_comes_back(saved):
    loaded = load_model(saved)
    assert loaded.model.layout.kept == {"encoder.stages.3.blocks.0.heads": (1,)}
    assert loaded.model.config == TINY and not loaded.model.training
    assert all(p.requires_grad and not p.is_meta for p in loaded.model.parameters())
    assert loaded.masks[WEIGHT].dtype == torch.bool
    assert weights_digest(loaded.model.state_dict(), loaded.masks) == file_digest(saved)
    assert next(load_model(saved, dtype=torch.bfloat16).model.parameters()).dtype == torch.bfloat16


def test_weights_begin_where_torchs_own_do(tmp_path):
    """In the file one follows another without gaps; kernels that go by the address would then round in another order."""
    model = DCAE(TINY).eval()
    save_model(tmp_path / "a.safetensors", model.state_dict(), config=TINY, layout=model.layout)
    found = load_model(tmp_path / "a.safetensors").model
    assert any(value.numel() * 4 % 64 for value in model.parameters())
    assert {value.data_ptr() % 64 for value in found.parameters()} == {0}
    x_BCHW = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(x_BCHW), model(x_BCHW))


def test_the_digest_sees_each_part_and_no_container(saved):
    loaded = load_model(saved)
    state, masks = loaded.model.state_dict(), loaded.masks
    digest = weights_digest(state, masks)
    assert weights_digest(dict(reversed(state.items())), masks) == digest
    flipped = state | {WEIGHT: state[WEIGHT].clone()}
    flipped[WEIGHT].view(-1)[0] += 1e-6
    renamed = {("x" if key == WEIGHT else key): value for key, value in state.items()}
    others = [
        (flipped, masks),
        (renamed, masks),
        (state | {WEIGHT: state[WEIGHT].reshape(1, -1)}, masks),
        (state | {WEIGHT: state[WEIGHT].double()}, masks),
        (state, {WEIGHT: ~masks[WEIGHT]}),
        (state, {}),
    ]
    assert len({digest, *(weights_digest(*other) for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("keep", [0, 4, 8, 300, -1])
def test_a_file_that_is_cut_short(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    for read in (read_header, load_model):
        with pytest.raises(CheckpointError) as caught:
            read(saved)
        assert caught.value.code == ("truncated" if keep == -1 else "not_a_checkpoint")


@pytest.mark.parametrize("header", [b"[1, 2]", b"null", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"\xff\xfe", b"{"])
def test_headers_that_are_none(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError):
        load_model(path)


def test_tensors_that_the_header_misdescribes(tmp_path):
    header = json.dumps(
        {
            "__metadata__": {KEY: json.dumps({"format": 2, "family": "dcae", "config": {}, "layout": {}, "masks": {}})},
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        }
    ).encode()
    path = tmp_path / "lies.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises((CheckpointError, ConfigError)):
        load_model(path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda header: header.update(format=3), "format"),
        (lambda header: header.update(format="new"), "bad_header"),
        (lambda header: header.pop("config"), "bad_header"),
        (lambda header: header.pop("format"), "bad_header"),
        (lambda header: "{", "bad_header"),
        (lambda header: "[]", "bad_header"),
        (lambda header: header["masks"].update({"encoder.conv_out.bias": ["float32", [16]]}), "wrong_mask"),
        (lambda header: header["masks"].update({WEIGHT: ["float32", [1, 2]]}), "wrong_mask"),
        (lambda header: header["masks"].update({WEIGHT: ["float16", [16, 128, 3, 3]]}), "wrong_mask"),
        (lambda header: header["masks"].update({WEIGHT: ["load", [1, 2]]}), "wrong_mask"),
        (lambda header: header["masks"].update({WEIGHT: [1, 2]}), "wrong_mask"),
        (lambda header: header["masks"].clear(), "wrong_keys"),
        (lambda header: header.update(layout={}), "wrong_shape"),
        (lambda header: header.update(layout={"version": 1}), "bad_layout"),
        (lambda header: header["config"].pop("encoder"), "bad_input"),
    ],
)
def test_a_header_that_does_not_fit(saved, change, code):
    rewrite(saved, lambda header: text if isinstance(text := change(header), str) else None)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_model(saved)
    assert caught.value.code == code


def test_what_is_no_file_of_ours(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name, code in (("foreign", "foreign"), ("folder", "unreadable"), ("missing", "no_file")):
        with pytest.raises(CheckpointError) as caught:
            read_header(tmp_path / f"{name}.safetensors")
        assert caught.value.code == code


def test_a_write_that_fails_leaves_nothing(tmp_path, saved, monkeypatch):
    state, before = DCAE(TINY).state_dict(), saved.read_bytes()
    with pytest.raises(CheckpointError, match="could not be written") as caught:
        save_model(tmp_path / "no" / "folder.safetensors", state, config=TINY, layout=Layout())
    assert caught.value.code == "write"

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(saved, state, config=TINY, layout=Layout())
    assert saved.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [saved.name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("sparsity", "share"), [(0.5, 0.46), (0.9, 0.11)])
def test_a_masked_model_takes_the_bytes_of_what_is_left(tmp_path, sparsity, share, dtype):
    """Bounds for float32; in bfloat16 the mask weighs twice as much against the values."""
    torch.manual_seed(0)
    weight = (torch.randn(300_000) * 0.02).reshape(300, 100, 10, 1)
    mask = weight.abs() > weight.abs().flatten().quantile(sparsity)
    file = tmp_path / "masked.safetensors"
    state = {"w": weight.to(dtype).masked_fill(~mask, 0.0)}
    save_model(file, state, config=TINY, layout=Layout(), masks={"w": mask})
    assert file.stat().st_size - 4000 < weight.numel() * dtype.itemsize * (share if dtype == torch.float32 else share + 0.04)
    found, masks = split_masks(load_tensors(file), read_header(file))
    assert torch.equal(found["w"], state["w"]) and found["w"].dtype == dtype and torch.equal(masks["w"], mask)
    assert file_digest(file) == weights_digest(state, {"w": mask})


@pytest.mark.parametrize(("sparsity", "share"), [(0.5, 0.46), (0.9, 0.11)])
def test_a_trained_model_masked_is_that_small_as_a_file(tmp_path, sparsity, share):
    """The shipped demo model, whole files: biases, norms and header included."""
    dense = load_model(DEMO_FILE)
    state = dense.model.state_dict()
    masks = prune_weights(state, "global_magnitude", rate=sparsity)
    sizes = []
    for name, found in (("dense", {}), ("masked", masks)):
        path = tmp_path / f"{name}.safetensors"
        save_model(path, apply_masks(state, found), config=dense.model.config, layout=dense.model.layout, masks=found)
        sizes.append(path.stat().st_size)
    assert sizes[1] <= share * sizes[0], f"{sizes[1] / sizes[0]:.1%}"
    again = load_model(tmp_path / "masked.safetensors")
    assert all(torch.equal(value, masks[key]) for key, value in again.masks.items()) and set(again.masks) == set(masks)


@pytest.mark.parametrize("left", [0, 1, 7, 9])
def test_masks_of_any_count(tmp_path, left):
    mask = torch.arange(9) < left
    state = {"w": torch.arange(1.0, 10.0).masked_fill(~mask, 0.0)}
    save_model(tmp_path / "m.safetensors", state, config=TINY, layout=Layout(), masks={"w": mask})
    found, masks = split_masks(load_tensors(tmp_path / "m.safetensors"), {"format": 2, "masks": {"w": ("float32", [9])}})
    assert torch.equal(found["w"], state["w"]) and torch.equal(masks["w"], mask)


@pytest.mark.parametrize("leak", [1e-30, -0.0, float("nan")])
def test_a_mask_that_leaks_is_not_stored(tmp_path, leak):
    state, masks = {"w": torch.tensor([1.0, leak])}, {"w": torch.tensor([True, False])}
    with pytest.raises(CheckpointError, match="other than 0.0 where its mask") as caught:
        save_model(tmp_path / "m.safetensors", state, config=TINY, layout=Layout(), masks=masks)
    assert caught.value.code == "mask_leak" and not list(tmp_path.iterdir())


def test_values_that_are_damaged_say_so(tmp_path, saved):
    tensors, header = load_file(saved), read_header(saved)
    for damaged in (tensors[f"values:{WEIGHT}"][:-9], torch.zeros(9, dtype=torch.uint8), torch.zeros(9)):
        save_file(tensors | {f"values:{WEIGHT}": damaged.clone()}, saved, metadata={KEY: json.dumps(header)})
        with pytest.raises(CheckpointError, match="listed as masked") as caught:
            load_model(saved)
        assert caught.value.code == "wrong_mask"


def test_build_names_the_first_difference():
    state = dict(DCAE(TINY).state_dict())
    with pytest.raises(CheckpointError, match="lacks encoder.conv_out.weight .1 missing, 0 unknown"):
        build(TINY, Layout(), {key: value for key, value in state.items() if key != WEIGHT})
    with pytest.raises(CheckpointError, match="has extra.weight, which the model has not"):
        build(TINY, Layout(), state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"conv_out.weight has shape \(1,\) where the model has"):
        build(TINY, Layout(), state | {WEIGHT: torch.zeros(1)})
