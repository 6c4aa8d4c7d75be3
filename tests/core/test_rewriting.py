"""Old files in the present format, and memory that runs out."""

from __future__ import annotations

import pytest
import torch

from core.errors import CoreError
from core.operations import retrain
from core.operations.memory import fitting_batch
from core.rewriting import rewrite_folder
from core.specs import RetrainSpec
from dcaecore import DCAE, VARIANTS, estimate, load_model


def test_a_folder_of_old_files_is_rewritten_and_what_cannot_be_read_is_told(tmp_path):
    torch.manual_seed(0)
    model = DCAE(VARIANTS["tiny"])
    state = model.state_dict()
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, old / "wrapped.pth")
    torch.save(state, old / "plain.pt")
    (old / "broken.pth").write_bytes(b"PK\x03\x04 nothing of use")
    (old / "notes.txt").write_text("not a weights file")
    found = {one.source.split("/")[-1]: one for one in rewrite_folder(old, new)}
    assert set(found) == {"wrapped.pth", "plain.pt", "broken.pth"}
    assert found["broken.pth"].target is None and found["broken.pth"].notes
    assert any("module." in note for note in found["wrapped.pth"].notes)
    for name in ("wrapped", "plain"):
        read = load_model(new / f"{name}.safetensors").model.state_dict()
        assert all(torch.equal(value, read[key]) for key, value in state.items())
    again = rewrite_folder(old, new)
    assert all(one.target is None for one in again)
    with pytest.raises(CoreError, match="no weights"):
        rewrite_folder(tmp_path / "nowhere", new)


def test_memory_that_runs_out_says_which_batch_fits(bench, monkeypatch):
    def full(*_given, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    parent = bench.add()
    monkeypatch.setattr(retrain, "train", full)
    with pytest.raises(CoreError, match="not enough for a batch of 8 at 32 px") as caught:
        bench.run("retrain", parent.id, image_size=32, batch_size=8, n_epochs=1, steps_per_epoch=2, warmup_epochs=0, val_steps=4)
    assert caught.value.code == "out_of_memory" and caught.value.legal == 4
    assert "batch_size 4" in caught.value.next and "accumulation_steps 2" in caught.value.next

    def other(*_given, **_options):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(retrain, "train", other)
    with pytest.raises(RuntimeError, match="shapes"):
        bench.run("retrain", parent.id, image_size=32, n_epochs=1, steps_per_epoch=2, warmup_epochs=0, val_steps=4)


def test_the_fitting_batch_divides_and_fits_by_the_estimate():
    model = DCAE(VARIANTS["tiny"])
    spec = RetrainSpec(batch_size=12, image_size=64)

    def bytes_of(batch: int) -> float:
        return estimate(model.config, model.layout, image_size=64, batch_size=batch).training_bytes

    assert fitting_batch(model, spec, bytes_of(6)) == 6
    assert fitting_batch(model, spec, bytes_of(5)) == 4
    assert fitting_batch(model, spec, 0) == 1
