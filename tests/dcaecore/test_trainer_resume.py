"""Checkpoints of a training: whole or not at all, and a resumed run reaches the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcaecore import (
    DCAE,
    VARIANTS,
    BatchStream,
    CheckpointError,
    DataSource,
    ImageCache,
    NullCallbacks,
    TrainSettings,
    latest_checkpoint,
    open_frames,
    pin,
    split_rows,
    train,
)
from dcaecore.checkpoints import load_checkpoint
from dcaecore.latents import CAP_BYTES, pays

SETTINGS = TrainSettings(
    n_epochs=4, steps_per_epoch=3, warmup_epochs=1, init_lr=1e-3, ema_decay=0.8, foreground_weight=5.0, eval_interval=2
)

RUN = """
import sys, json
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.dcaecore.test_trainer_resume import SETTINGS, Slow, setting_up
from dcaecore import latest_checkpoint, train
data, folder = Path(sys.argv[1]), Path(sys.argv[2])
model, stream, pinned = setting_up(data)
train(model, replace(SETTINGS, save_interval=1), stream, pinned, folder=folder, callbacks=Slow())
"""


class Slow(NullCallbacks):
    """Dawdles after the first checkpoint, so that a kill hits a run in the middle."""

    saved = False

    def on_checkpoint(self, path, step, why):
        self.saved = True

    def on_step(self, step, metrics):
        if self.saved and step % 3 == 2:
            time.sleep(30)


class Stop(NullCallbacks):
    """Cancels before step `at + 1`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def poll(self):
        self.left -= 1
        return "cancel" if self.left < 0 else "run"


def setting_up(data: Path):
    frames = open_frames(DataSource(), cache_folder=data)
    cache, rows = ImageCache(frames, 32), split_rows(frames)
    torch.manual_seed(0)
    return DCAE(VARIANTS["tiny"]), BatchStream(cache, rows.train, batch_size=2, seed=5), pin(cache, rows.validation, 16)


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_stopped_run_goes_on_to_the_same_bits(data_dir, tmp_path, optimizer, masked):
    settings = replace(SETTINGS, optimizer_name=optimizer)
    model, stream, pinned = setting_up(data_dir)
    masks = {n: torch.arange(p.numel()).view_as(p) % 2 == 0 for n, p in model.named_parameters() if p.ndim > 1} if masked else {}
    whole = train(model, settings, stream, pinned, masks=masks, folder=tmp_path / "whole")
    # Stopped twice: inside an epoch, and just after a validation.
    for at in (4, 2):
        other, stream, pinned = setting_up(data_dir)
        resume = latest_checkpoint(tmp_path / "parts")
        stopped = train(
            other, settings, stream, pinned, masks=masks, folder=tmp_path / "parts", resume_from=resume, callbacks=Stop(at)
        )
        assert stopped.status == "cancelled"
    torch.rand(7)  # whatever else drew random numbers in between
    again, stream, pinned = setting_up(data_dir)
    resumed = train(
        again, settings, stream, pinned, masks=masks, folder=tmp_path / "parts", resume_from=latest_checkpoint(tmp_path / "parts")
    )
    assert resumed.steps == whole.steps == 12
    assert same(resumed.state, whole.state) and same(again.state_dict(), model.state_dict())
    assert (resumed.best_step, resumed.best_value) == (whole.best_step, whole.best_value)


def test_latents_of_a_frozen_encoder_are_made_once_and_resumed_to_the_same_bits(data_dir, tmp_path, monkeypatch):
    settings = replace(SETTINGS, frozen_part="encoder")
    encoded = []

    def run(at=99, folder=None, rows=7):
        model, stream, pinned = setting_up(data_dir)
        few = BatchStream(stream.cache, stream.rows[:rows], batch_size=3, seed=5)  # epochs end inside batches
        plain = model.encoder.forward
        model.encoder.forward = lambda x: (encoded.append(len(x)), plain(x))[1] if model.training else plain(x)
        resume = None if folder is None else latest_checkpoint(folder)
        train(model, settings, few, pinned, folder=folder, resume_from=resume, callbacks=Stop(at))
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole = run()
    assert sum(encoded) == 9  # seven rows, two of which the third batch brings a second time
    for at in (4, 5):
        run(at, tmp_path)
    assert same(run(folder=tmp_path), whole)
    encoded.clear()
    monkeypatch.setattr("dcaecore.trainer.pays", lambda *_: False)
    each_time = run()
    assert sum(encoded) == 3 * 12
    assert all(torch.allclose(value, whole[name], atol=1e-5) for name, value in each_time.items())


def test_latents_are_kept_where_images_come_again_and_find_room(data_dir):
    _, stream, _ = setting_up(data_dir)
    enough = len(stream.rows) // 2 + 1
    assert pays(stream, enough, 100) and not pays(stream, enough - 1, 100)
    assert not pays(stream, enough, CAP_BYTES // len(stream.rows) + 1)


def test_a_killed_process_goes_on_to_the_same_bits(data_dir, tmp_path):
    folder = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(data_dir), str(folder)], env=environment, cwd=Path(__file__).parents[2]
    )
    try:
        deadline = time.monotonic() + 120
        while latest_checkpoint(folder) is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, stream, pinned = setting_up(data_dir)
        whole = train(model, SETTINGS, stream, pinned)
        other, stream, pinned = setting_up(data_dir)
        start = latest_checkpoint(folder)
        assert start is not None and load_checkpoint(start).step < 12
        resumed = train(other, SETTINGS, stream, pinned, folder=folder, resume_from=start)
    finally:
        torch.set_num_threads(threads)
    assert same(resumed.state, whole.state) and same(other.state_dict(), model.state_dict())


@pytest.fixture
def saved(data_dir, tmp_path):
    model, stream, pinned = setting_up(data_dir)
    train(model, replace(SETTINGS, n_epochs=2, save_interval=1), stream, pinned, folder=tmp_path / "run")
    return tmp_path / "run"


def test_what_a_checkpoint_holds(saved):
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["step_00000003", "step_00000006"]
    newest = latest_checkpoint(saved)
    assert sorted(path.name for path in newest.iterdir()) == [
        "best.safetensors", "digest", "ema.safetensors", "images.safetensors", "model.safetensors", "optimizer.safetensors",
        "state.json",
    ]  # fmt: skip
    facts = json.loads((newest / "state.json").read_text())
    assert facts["format"] == 1 and facts["step"] == facts["next_batch"] == 6 and facts["threads"] == torch.get_num_threads()
    assert len(facts["random_state"]) > 100


def test_a_damaged_checkpoint_is_passed_over_and_refused(saved, data_dir):
    newest = latest_checkpoint(saved)
    file = newest / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    assert latest_checkpoint(saved).name == "step_00000003"
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(newest)
    (saved / "step_00000003" / "digest").unlink()
    assert latest_checkpoint(saved) is None and latest_checkpoint(saved / "nowhere") is None


def test_a_newer_or_another_models_checkpoint_is_refused(saved, data_dir):
    from dcaecore.checkpoints import _digest

    newest = latest_checkpoint(saved)
    model, stream, pinned = setting_up(data_dir)
    with pytest.raises(CheckpointError, match="another training"):
        wider = replace(VARIANTS["tiny"], latent_channels=8)
        train(DCAE(wider), SETTINGS, stream, pinned, resume_from=newest)
    copy = saved / "step_00000009"
    shutil.copytree(newest, copy)
    facts = json.loads((copy / "state.json").read_text())
    (copy / "state.json").write_text(json.dumps({**facts, "format": 2}))
    (copy / "digest").write_text(_digest(copy))
    with pytest.raises(CheckpointError, match="newer version"):
        load_checkpoint(copy)


def test_a_full_disk_leaves_the_older_checkpoint_whole(saved, data_dir, monkeypatch):
    import dcaecore.checkpoints as checkpoints

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    model, stream, pinned = setting_up(data_dir)
    before = sorted(path.name for path in saved.iterdir())
    with pytest.raises(CheckpointError, match="No space left") as caught:
        train(model, SETTINGS, stream, pinned, folder=saved, resume_from=latest_checkpoint(saved), callbacks=Stop(1))
    assert caught.value.code == "checkpoint_write" and "disk space" in caught.value.next
    assert sorted(path.name for path in saved.iterdir()) == before and latest_checkpoint(saved) is not None


def test_another_thread_count_is_said(saved, data_dir):
    newest = latest_checkpoint(saved)
    lines = []
    callbacks = Stop(0)
    callbacks.log = lambda level, message: lines.append((level, message))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        model, stream, pinned = setting_up(data_dir)
        train(model, SETTINGS, stream, pinned, resume_from=newest, callbacks=callbacks)
    finally:
        torch.set_num_threads(threads)
    assert any(level == "warning" and "thread count" in line for level, line in lines)


def test_a_checkpoint_from_before_early_stopping_goes_on(data_dir, tmp_path):
    """What an earlier version wrote of the same format: no word of stopping, schedules that follow validation, or why it ended."""
    from dcaecore.checkpoints import _digest

    model, stream, pinned = setting_up(data_dir)
    train(model, SETTINGS, stream, pinned, folder=tmp_path, callbacks=Stop(5))
    newest = latest_checkpoint(tmp_path)
    facts = json.loads((newest / "state.json").read_text())
    old = {name: value for name, value in facts.items() if name not in ("stop_rule", "stopped", "plateau")}
    assert len(old) == len(facts) - 3
    (newest / "state.json").write_text(json.dumps(old))
    (newest / "digest").write_text(_digest(newest))
    model, stream, pinned = setting_up(data_dir)
    resumed = train(model, SETTINGS, stream, pinned, folder=tmp_path, resume_from=newest)
    other, stream, pinned = setting_up(data_dir)
    assert same(resumed.state, train(other, SETTINGS, stream, pinned).state) and resumed.stopped == ""


def test_what_a_killed_writer_left_is_cleaned_away(saved, data_dir):
    half = saved / ".partial-1-3"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    model, stream, pinned = setting_up(data_dir)
    train(model, replace(SETTINGS, save_interval=1), stream, pinned, folder=saved, resume_from=latest_checkpoint(saved))
    assert not half.exists() and latest_checkpoint(saved).name == "step_00000012"
