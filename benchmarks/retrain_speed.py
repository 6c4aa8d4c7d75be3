"""Steps a second of a retraining job's loop against a loop written by hand: same model, batches, loader threads, optimizer.

The job's loop runs as in a job: each step's figures in a real store, progress, control asked at each step, masks on every weight
matrix, reconstructions and checkpoints. Both live in one process and take turns of a few steps, so a machine that slows down slows
both; the ratio of each pair of turns counts. Validation lies outside, as the loop by hand has none, and a checkpoint is told apart.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.stats import bootstrap

import store.jobs as jobs
from benchmarks.results import machine, table, write_section
from core.jobs.allocator import keep_memory
from core.operations.context import Context
from core.operations.images import open_parts
from core.operations.retrain import JobCallbacks, train_settings
from core.settings import Settings, read_settings
from core.specs import RetrainSpec
from dcaecore import DCAE, DEMO_FILE, BatchStream, ImageCache, PinnedImages, load_model, pin, train
from store import open_store

HAND, JOB = "loop written by hand", "a job's loop: figures, progress, control, masks"


class Turns:
    """Two loops that take turns of `stretch` steps, and the seconds of each turn."""

    def __init__(self, names: tuple[str, str], stretch: int) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.stretch = stretch
        self._steps = dict.fromkeys(names, 0)
        self._running = list(names)
        self._changed = threading.Condition()
        self._started = 0.0

    def begin(self, name: str) -> None:
        """Waits for the turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._running[0] == name)
        self._started = time.perf_counter()

    def stepped(self, name: str, beside_s: float = 0.0) -> None:
        """After each step, of which `beside_s` do not count; hands over at the end of a stretch."""
        self._started += beside_s
        self._steps[name] += 1
        if self._steps[name] % self.stretch == 0:
            self.seconds[name].append(time.perf_counter() - self._started)
            with self._changed:
                self._running.append(self._running.pop(0))
                self._changed.notify_all()
            self.begin(name)

    def leave(self, name: str) -> None:
        """The other goes on alone."""
        with self._changed:
            self._running.remove(name)
            self._changed.notify_all()


def by_hand(model: DCAE, stream: BatchStream, spec: RetrainSpec, device: str, turns: Turns) -> None:
    """The loop as one writes it."""
    model = model.to(device=device, memory_format=torch.channels_last).train()
    settings = train_settings(spec)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=spec.init_lr, betas=spec.betas, eps=spec.eps, fused=True,
    )  # fmt: skip
    batches = stream.iterate(0)
    turns.begin(HAND)
    for step in range(spec.total_steps):
        batch = next(batches)
        x = batch.images_BCHW.to(device, non_blocking=True, memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=spec.dtype == "bfloat16"):
            y = model(x)
        loss = (y.float() - x).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise RuntimeError("The loss is not finite.")
        turns.stepped(HAND)
    batches.close()  # type: ignore[attr-defined]


class InTurns(JobCallbacks):
    """A job's callbacks that take turns, with one checkpoint in the second turn."""

    turns: Turns
    checkpoint_s = _beside_s = _asked = 0.0

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        super().poll()
        if self.polls == 1:
            self.turns.begin(JOB)
            return "run"
        self.turns.stepped(JOB, self._beside_s)
        self._beside_s = 0.0
        self._asked = time.perf_counter()
        return "checkpoint" if self.polls == self.turns.stretch + 2 else "run"

    def on_checkpoint(self, path: Path, step: int, why: str) -> None:
        super().on_checkpoint(path, step, why)
        if why == "asked":
            self.checkpoint_s = self._beside_s = time.perf_counter() - self._asked


def as_a_job(
    model: DCAE, stream: BatchStream, pinned: PinnedImages, spec: RetrainSpec, home: Path, device: str, turns: Turns
) -> float:
    """The job's loop; seconds of its checkpoint."""
    store = open_store(home)
    job = jobs.submit(store, "retrain", spec.model_dump(mode="json"), device=device)
    claimed = jobs.claim(store, device, "benchmark")
    assert claimed is not None and claimed.id == job.id
    context = Context(store, claimed, Settings(home=home, device=device))
    callbacks = InTurns(context, train_settings(spec), pinned, spec.num_save_images)
    callbacks.turns = turns
    masks = {name: torch.rand_like(p) > 0.5 for name, p in model.named_parameters() if p.ndim > 1}
    train(
        model, train_settings(spec), stream, pinned, masks=masks, callbacks=callbacks, folder=context.folder / "checkpoints",
        device=device,
    )  # fmt: skip
    context.close()
    jobs.complete(store, claimed)
    store.close()
    return callbacks.checkpoint_s


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval: a turn in which the machine did something else does not count for more than one."""
    found = bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return statistics.median(ratios), float(found.low), float(found.high)


def main() -> None:
    """Both loops in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60, help="Pairs of turns.")
    parser.add_argument("--stretch", type=int, default=3, help="Steps of a turn.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.pairs < 5:
        parser.error("at least 5 pairs, or the interval says nothing")
    torch.set_flush_denormal(True)
    keep_memory()
    torch.manual_seed(0)
    spec = RetrainSpec(
        batch_size=given.batch_size, image_size=given.image_size, n_epochs=1, steps_per_epoch=(given.pairs + 2) * given.stretch,
        warmup_epochs=0, init_lr=1e-4, val_steps=8, num_workers=2, dtype=given.dtype,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        settings = read_settings().model_copy(update={"data_dir": read_settings().data_folder, "home": home})
        store = open_store(home)
        opening = Context(store, jobs.submit(store, "retrain", {}, device="elsewhere"), settings)
        parts = open_parts(spec.data, spec.image_size, opening, "train", "validation")
        cache: ImageCache = parts[0].cache
        pinned = pin(parts[1].cache, parts[1].rows, spec.val_steps)
        opening.close()
        store.close()
        turns = Turns((HAND, JOB), given.stretch)

        def inputs() -> tuple[DCAE, BatchStream]:
            stream = BatchStream(cache, parts[0].rows, batch_size=spec.batch_size, seed=0, num_workers=2, with_foreground=False)
            return load_model(DEMO_FILE).model, stream

        def hand() -> None:
            by_hand(*inputs(), spec, given.device, turns)

        def job() -> float:
            return as_a_job(*inputs(), pinned, spec, home, given.device, turns)

        with ThreadPoolExecutor(2) as threads:
            futures = {}
            for name, loop in ((HAND, hand), (JOB, job)):
                futures[name] = threads.submit(loop)
                futures[name].add_done_callback(lambda _done, name=name: turns.leave(name))
            futures[HAND].result()
            save = futures[JOB].result()
    theirs, ours = (turns.seconds[name][1 : given.pairs + 1] for name in (HAND, JOB))
    ratio, low, high = interval([hand / own for hand, own in zip(theirs, ours, strict=True)])
    rows = [[name, f"{given.stretch / statistics.median(found):.3f}"] for name, found in ((HAND, theirs), (JOB, ours))]
    lines = [
        f"`.venv/bin/python -m benchmarks.retrain_speed` on {machine()}. Demo model, {given.image_size} px, batch {given.batch_size}, "
        f"{spec.dtype}, {given.device}; {given.pairs} pairs of turns of {given.stretch} steps in one process.",
        "",
        *table(["loop", "steps a second (median)"], rows),
        "",
        f"The job's loop runs at {ratio:.1%} of the other's speed (95 % interval {low:.1%} to {high:.1%}). A checkpoint takes "
        f"{save:.2f} s, so one a minute costs {save / 60:.2%} more.",
    ]
    write_section(f"A retraining's loop ({given.device})", lines)


if __name__ == "__main__":
    main()
