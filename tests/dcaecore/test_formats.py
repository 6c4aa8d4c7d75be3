"""Files of every format that there was still load; the user's own `.pth` files load with a note of what was converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.rewriting import rewrite_folder
from dcaecore import (
    DCAE,
    VARIANTS,
    CheckpointError,
    checkpoint,
    checkpoints,
    from_pretrained,
    load_checkpoint,
    load_model,
    train,
    weights_digest,
)
from dcaecore.checkpoint import file_digest
from dcaecore.keys import to_format
from tests.formats import FOLDER, LAYOUT, MASKED, MICRO, SETTINGS, training, weights

MODELS = sorted(FOLDER.glob("model-*.safetensors"))
TRAININGS = sorted(FOLDER.glob("training-*"))


def test_a_file_of_each_format_is_kept():
    assert [path.stem for path in MODELS] == [f"model-{number}" for number in range(1, checkpoint.FORMAT + 1)]
    told = {json.loads(next(path.rglob("state.json")).read_text())["format"] for path in TRAININGS}
    assert told == set(range(1, checkpoints.FORMAT + 1))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_of_each_format_loads_with_its_mask_and_its_cut(path, tmp_path):
    state, masks = weights()
    found = load_model(path)
    assert found.model.config == MICRO and found.model.layout == LAYOUT and list(found.masks) == [MASKED]
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())
    assert torch.equal(found.masks[MASKED], masks[MASKED]) and file_digest(path) == weights_digest(state, masks)
    read = from_pretrained(path)
    number = int(path.stem.removeprefix("model-"))
    assert any(f"format {number}" in note for note in read.notes) == (number < checkpoint.FORMAT)
    (tmp_path / "old").mkdir()
    shutil.copy(path, tmp_path / "old")
    (told,) = rewrite_folder(tmp_path / "old", tmp_path / "new")
    new = Path(str(told.target))
    assert (
        told.notes == tuple(read.notes)
        and checkpoint.read_header(new)["format"] == checkpoint.FORMAT
        and file_digest(new) == file_digest(path)
    )


def test_a_mask_of_format_1_that_does_not_fit_is_told(tmp_path):
    header, tensors = checkpoint.read_header(MODELS[0]), load_file(MODELS[0])
    for damaged in ({}, {f"mask:{MASKED}": torch.zeros(3, dtype=torch.uint8)}):
        rest = {name: value for name, value in tensors.items() if not name.startswith("mask:")}
        save_file({**rest, **damaged}, tmp_path / "damaged.safetensors", metadata={checkpoint.KEY: json.dumps(header)})
        with pytest.raises(CheckpointError, match="listed as masked") as caught:
            load_model(tmp_path / "damaged.safetensors")
        assert caught.value.code == "wrong_mask"


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.name)
def test_a_training_of_each_format_goes_on(path, tmp_path):
    (tmp_path / "images").mkdir()
    model, stream, pinned = training(tmp_path / "images")
    saved = shutil.copytree(path, tmp_path / "saved") / "step_00000002"
    before = load_checkpoint(saved)
    result = train(model, SETTINGS, stream, pinned, masks=weights()[1], folder=tmp_path / "saved", resume_from=saved)
    assert before.step == 2 and result.steps == 4 and result.best_step in (2, 4)
    after = load_checkpoint(tmp_path / "saved" / "step_00000004")
    assert set(after.model) == set(before.model) and set(after.optimizer) == set(before.optimizer)
    assert not after.model[MASKED][~weights()[1][MASKED]].any()


@pytest.mark.parametrize("leftover", ["none", "weight_mask", "weight_orig"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("fmt", ["original", "diffusers"])
def test_a_users_pth_loads_with_a_note_of_what_was_converted(tmp_path, fmt, prefix, leftover):
    torch.manual_seed(0)
    model = DCAE(VARIANTS["tiny"])
    state = {name: value.clone() for name, value in to_format(model.state_dict(), VARIANTS["tiny"], fmt).items()}
    # `prune.remove` leaves `weight`; a state dict saved before it has `weight_orig`; some codes keep a mask beside the weight.
    name = next(key for key in state if key.startswith("encoder.") and key.endswith(".weight") and state[key].ndim == 4)
    expected = dict(state)
    if leftover != "none":
        mask = (torch.arange(state[name].numel()) % 2).reshape(state[name].shape).float()
        expected[name] = state[name] * mask
        state[f"{name}_mask"] = mask
        if leftover == "weight_orig":
            state[f"{name}_orig"] = state.pop(name)
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}, "epoch": 3}, tmp_path / "mine.pth")
    found = from_pretrained(tmp_path / "mine.pth")
    back = to_format(found.model.state_dict(), VARIANTS["tiny"], fmt)
    assert set(back) == set(expected) and all(torch.equal(back[key], value) for key, value in expected.items())
    told = " | ".join(found.notes)
    assert f"keys converted from the {fmt} format" in told and "weights taken from 'state_dict'" in told
    assert ("prefix 'module.' removed" in told) == bool(prefix)
    assert ("1 pruning masks folded" in told) == (leftover != "none")
