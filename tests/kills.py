"""Kills a training with -9 at random moments, again and again, and holds what it reaches to the bits of one that was never touched.

`.venv/bin/python -m tests.kills --kills 50` does what a test does with fewer kills. The training has all that must survive: streamed
rows cached as parquet, shuffling, two loader threads, masks, a moving average, a schedule that follows validation, checkpoints in
mid-epoch. A kill may hit the loading of rows, a step, a validation or the writing of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from dcaecore.sample_data import write_sample_set
from dcaecore.train_settings import TrainSettings

SETTINGS = TrainSettings(
    n_epochs=8, steps_per_epoch=5, warmup_epochs=1, init_lr=1e-3, ema_decay=0.8, foreground_weight=5.0, eval_interval=1,
    lr_schedule_name="plateau", lr_patience=0, min_gain=0.5, save_interval=2,
)  # fmt: skip
MID_EPOCH = 3
"""A checkpoint is asked for before each so manieth step, besides those of the interval."""


@dataclass
class Tally:
    """What was done and seen."""

    kills: int = 0
    trainings: int = 0
    differences: list[str] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    """The step that each killed attempt left to go on from; 0 where it had not come to a checkpoint."""
    half_written: int = 0
    """Kills that hit the writing of a checkpoint."""


def rows(parquet: str):
    """A stream as the hub gives one."""
    import pyarrow.parquet as pq

    return lambda _source: iter(pq.read_table(parquet).to_pylist())


def train_once(parquet: str, cache: str, folder: str) -> None:
    """An attempt: goes on from the newest checkpoint, and leaves its end as `folder/end.safetensors`."""
    # Coverage is not asked of what will be killed, and makes a training twice as long.
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    import torch
    from safetensors.torch import save_file

    from dcaecore import (
        DCAE,
        VARIANTS,
        BatchStream,
        DataSource,
        ImageCache,
        NullCallbacks,
        latest_checkpoint,
        open_frames,
        pin,
        split_rows,
        train,
    )

    class Often(NullCallbacks):
        polls = 0

        def poll(self):
            self.polls += 1
            return "checkpoint" if self.polls % MID_EPOCH == 0 else "run"

    torch.set_num_threads(1)
    frames = open_frames(DataSource("hub", "kills/frames"), cache_folder=Path(cache), stream=rows(parquet))
    images, parts = ImageCache(frames, 32), split_rows(frames)
    stream = BatchStream(images, parts.train, batch_size=2, seed=5, num_workers=2)
    torch.manual_seed(0)
    model = DCAE(VARIANTS["tiny"])
    masks = {name: torch.arange(p.numel()).view_as(p) % 3 > 0 for name, p in model.named_parameters() if p.ndim > 1}
    place = Path(folder)
    result = train(
        model, SETTINGS, stream, pin(images, parts.validation, 16), masks=masks, callbacks=Often(), folder=place / "checkpoints",
        resume_from=latest_checkpoint(place / "checkpoints"),
    )  # fmt: skip
    live = {f"live:{name}": value.contiguous() for name, value in model.state_dict().items()}
    partial = place / f".end-{os.getpid()}"
    save_file({**result.state, **live}, partial, metadata={"best": json.dumps([result.best_step, result.best_value])})
    os.replace(partial, place / "end.safetensors")


def run(kills: int, seed: int, folder: Path) -> Tally:
    """Kills `kills` attempts; every training that comes to its end is compared with the first, which nobody touched."""
    parquet = folder / "frames.parquet"
    write_sample_set("mspacman", folder, episodes=6, frames_per_episode=20)
    shutil.move(folder / "mspacman.parquet", parquet)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcaecore.trainer", "dcaecore.data", "datasets", "tests.kills"])
    chance, tally = random.Random(seed), Tally()

    def attempt(place: Path, seconds: float | None) -> bool:
        """Whether it was killed."""
        place.mkdir(exist_ok=True)
        process = context.Process(target=train_once, args=(str(parquet), str(place / "cache"), str(place)))
        process.start()
        process.join(seconds)
        killed = process.is_alive()
        if killed:
            process.kill()
        process.join()
        assert killed or process.exitcode == 0, f"The training ended with exit code {process.exitcode}."
        return killed

    attempt(folder / "warm", None)
    started = time.monotonic()
    attempt(folder / "whole", None)
    whole_s = time.monotonic() - started
    wanted = (folder / "whole" / "end.safetensors").read_bytes()
    while tally.kills < kills or tally.trainings == 0:
        place = folder / f"training_{tally.trainings}"
        while tally.kills < kills and attempt(place, chance.uniform(0.0, whole_s)):
            tally.kills += 1
            saved = sorted((place / "checkpoints").glob("step_*"))
            tally.resumed_at.append(int(saved[-1].name[5:]) if saved else 0)
            tally.half_written += any((place / "checkpoints").glob(".partial-*"))
        if not (place / "end.safetensors").exists():
            attempt(place, None)
        tally.trainings += 1
        if (place / "end.safetensors").read_bytes() != wanted:
            tally.differences.append(place.name)
        else:
            shutil.rmtree(place)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tally = run(given.kills, given.seed, Path(scratch))
    steps = ", ".join(map(str, tally.resumed_at))
    sys.stdout.write(
        f"{tally.kills} kills over {tally.trainings} trainings of {SETTINGS.total_steps} steps, {tally.half_written} of them while a "
        f"checkpoint was written; {len(tally.differences)} ended with other bits. Went on from steps {steps}.\n"
    )
    sys.exit(bool(tally.differences))


if __name__ == "__main__":
    main()
