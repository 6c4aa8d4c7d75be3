"""Two processes against one: the same samples in each global step, the same weights, errors and controls of one told to the other."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcaecore import (
    ALONE,
    DCAE,
    VARIANTS,
    BatchStream,
    ConfigError,
    DataError,
    DataSource,
    ImageCache,
    NullCallbacks,
    TrainingError,
    TrainSettings,
    World,
    joined,
    latest_checkpoint,
    open_frames,
    pin,
    split_rows,
    train,
)
from dcaecore.checkpoints import load_checkpoint
from dcaecore.world import deaths_told

SETTINGS = TrainSettings(
    n_epochs=4, steps_per_epoch=5, warmup_epochs=1, init_lr=1e-3, ema_decay=0.8, eval_interval=2, save_interval=4, keep="last"
)
CASES = {
    "adamw": SETTINGS,
    "weighted parts": replace(SETTINGS, foreground_weight=5.0, accumulation_steps=2, reconstruction_loss="l1+mse"),
    "taught, plateau": replace(
        SETTINGS, optimizer_name="sgd", distill_latent_weight=1.0, distill_features_weight=0.5, lr_schedule_name="plateau",
        lr_patience=0, min_gain=50.0, recompute=True,
    ),
}  # fmt: skip


class Told(NullCallbacks):
    def __init__(self, stop: int = 10**6) -> None:
        self.steps, self.stop, self.polls = {}, stop, 0

    def poll(self):
        self.polls += 1
        return "cancel" if self.polls > self.stop else "run"

    def on_step(self, step, metrics):
        self.steps[step] = metrics


def setting_up(data: Path, settings: TrainSettings, world: World = ALONE):
    cache = ImageCache(open_frames(DataSource(), cache_folder=data), 32)
    rows = split_rows(cache.frames)
    stream = BatchStream(
        cache, rows.train, batch_size=4, seed=5, rank=world.rank, world_size=world.size, parts=settings.accumulation_steps
    )
    torch.manual_seed(world.rank)  # rank 0's weights count
    return DCAE(VARIANTS["tiny"]), stream, pin(cache, rows.validation, 4)


def teacher() -> DCAE:
    torch.manual_seed(9)
    return DCAE(VARIANTS["tiny"])


def run(data: Path, settings: TrainSettings, world: World = ALONE, **options):
    model, stream, pinned = setting_up(data, settings, world)
    told = Told(options.pop("stop", 10**6))
    result = train(model, settings, stream, pinned, teacher=teacher(), callbacks=told, world=world, **options)
    return {**model.state_dict(), **{f"kept:{k}": v for k, v in result.state.items()}}, told.steps, result.status


def rank_main(rank: int, port: int, data: Path, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    found: dict = {}
    try:
        with joined("cpu") as world:
            for name, settings in CASES.items():
                found[name] = run(data, settings, world)
            saved = folder / "checkpoints" if world.is_main else None
            found["stopped"] = run(data, SETTINGS, world, folder=saved, stop=7)[2]
            resume = latest_checkpoint(saved) if saved else None
            found["resumed"] = run(data, SETTINGS, world, folder=saved, resume_from=resume)
            found["errors"] = one_fails(world)
            found["not finite"] = one_is_poisoned(data, world)
            found["batchnorm"] = statistics_are_trained(data, world)
            found["first"] = world.first(lambda: (folder / "made").exists() or not (folder / "made").touch())
    except BaseException:  # told by the test
        found["crash"] = traceback.format_exc()
    torch.save(found, folder / f"rank_{rank}.pt")


def one_fails(world: World) -> str:
    def call() -> None:
        if world.rank == 1:
            raise DataError("Row 7 is broken.", code="broken_image", given="7", next="Repair it.")

    with pytest.raises(DataError) as caught:
        world.together(call)
    return f"{caught.value.code} {caught.value}"


def statistics_are_trained(data: Path, world: World) -> str:
    _, stream, pinned = setting_up(data, SETTINGS, world)
    decoder = replace(VARIANTS["tiny"].decoder, norms=("bn2d",) * 4, acts=("relu",) * 4)
    with pytest.raises(ConfigError) as caught:
        train(DCAE(replace(VARIANTS["tiny"], decoder=decoder)), replace(SETTINGS, batchnorm="train"), stream, pinned, world=world)
    return caught.value.message


def one_is_poisoned(data: Path, world: World) -> str:
    model, stream, pinned = setting_up(data, SETTINGS, world)

    class Poisons(Told):
        def poll(self):
            if super().poll() == "run" and self.polls == 3:
                with torch.no_grad():
                    model.decoder.conv_in.weight.fill_(float("nan"))
            return "run"

    with pytest.raises(TrainingError) as caught:
        train(model, SETTINGS, stream, pinned, callbacks=Poisons(), world=world)
    return caught.value.message


@pytest.fixture(scope="module")
def ranks(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank_main, args=(rank, port, data_dir, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    found = [torch.load(folder / f"rank_{rank}.pt") for rank in range(2)]
    assert not any("crash" in one for one in found), [one.get("crash") for one in found]
    return folder, found


@pytest.fixture(scope="module")
def alone(data_dir):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: run(data_dir, settings) for name, settings in CASES.items()}
    torch.set_num_threads(threads)


def largest_difference(one, two) -> float:
    assert one.keys() == two.keys()
    return max(float((value.double() - two[name].double()).abs().max()) for name, value in one.items())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_reach_the_weights_and_the_figures_of_one(ranks, alone, case):
    _, (main, other) = ranks
    assert largest_difference(main[case][0], alone[case][0]) < 1e-5
    live = {name for name in other[case][0] if not name.startswith("kept:")}
    assert all(torch.equal(main[case][0][name], other[case][0][name]) for name in live)
    for step, figures in alone[case][1].items():
        for key in figures.keys() - {"step_ms"}:
            assert main[case][1][step][key] == pytest.approx(figures[key], rel=2e-3, abs=1e-6), (step, key)
    assert not other[case][1] and len(main[case][1]) == 20


def test_a_stopped_world_goes_on_to_the_same_bits_and_only_rank_0_writes(ranks):
    folder, (main, other) = ranks
    assert main["stopped"] == other["stopped"] == "cancelled"
    whole, resumed = main["adamw"][0], main["resumed"][0]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    state = load_checkpoint(latest_checkpoint(folder / "checkpoints"))
    # Every image of every global step counts once, whichever rank held it.
    assert int(state.images["count"].sum()) == 20 * 4


def test_what_fails_on_one_rank_is_raised_on_each(ranks):
    _, found = ranks
    assert [one["errors"] for one in found] == ["broken_image Row 7 is broken. Repair it."] * 2
    told = {one["not finite"] for one in found}
    assert len(told) == 1 and "at step 3 (images " in told.pop()
    assert found[0]["not finite"].count(",") == 3  # the images of both ranks are named
    assert [one["batchnorm"] for one in found] == ["BatchNorm statistics would differ between the processes."] * 2
    assert [one["first"] for one in found] == [True, True]


def test_a_process_that_is_gone_is_told_in_words():
    gloo = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:30639. This is typically caused by a crash."
    with pytest.raises(TrainingError, match="Another process of this training has died") as caught, deaths_told():
        raise RuntimeError(gloo)
    assert caught.value.code == "rank_died" and "Resume" in caught.value.next
    with pytest.raises(TrainingError, match="has died"), deaths_told():
        raise torch.distributed.DistNetworkError("the store is gone")
    with pytest.raises(RuntimeError, match="shapes"), deaths_told():
        raise RuntimeError("shapes do not fit")
    with pytest.raises(torch.OutOfMemoryError), deaths_told():
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("parts", [1, 2])
def test_a_global_step_has_the_same_rows_whatever_the_world(data_dir, parts):
    cache = ImageCache(open_frames(DataSource(), cache_folder=data_dir), 32)
    rows = np.arange(21)
    (whole,) = [BatchStream(cache, rows, batch_size=8, seed=3)]
    for size in (2, 4):
        streams = [BatchStream(cache, rows, batch_size=8, seed=3, rank=r, world_size=size, parts=parts) for r in range(size)]
        for step in range(6):
            drawn = [stream.rows_of(step) for stream in streams]
            assert sorted(place for stream in streams for place in stream.places) == list(range(8))
            assert sorted(row for own in drawn for row in own) == sorted(whole.rows_of(step))
            # Each part of the batch is the same set of images too: what is weighed within a part does not depend on the world.
            for part in range(parts):
                share = 8 // parts // size
                together = [row for own in drawn for row in own[part * share : (part + 1) * share]]
                assert sorted(together) == sorted(whole.rows_of(step)[part * 8 // parts : (part + 1) * 8 // parts])
