"""Steps a second of a retraining job's loop against a loop written by hand: same model, batches, loader threads, optimizer.

The job's loop runs as in a job: each step's figures in a real store, progress, control asked at each step, masks on every weight
matrix, reconstructions and checkpoints. Blocks of both alternate, and the ratio of each pair counts, so a machine that slows down
slows both. A block's clock runs from the end of its first step to the end of its last:
validation lies outside, as the loop by hand has none, and the one checkpoint of a block is told apart.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from scipy.stats import t as student_t

import store.jobs as jobs
from benchmarks.results import machine, table, write_section
from core.operations.context import Context
from core.operations.images import open_parts
from core.operations.retrain import JobCallbacks, train_settings
from core.settings import Settings, read_settings
from core.specs import RetrainSpec
from dcaecore import DCAE, DEMO_FILE, BatchStream, ImageCache, PinnedImages, load_model, pin, train
from store import open_store


def by_hand(model: DCAE, stream: BatchStream, spec: RetrainSpec, device: str, steps: int) -> float:
    """The loop as one writes it: seconds for `steps - 1` steps after the first."""
    model = model.to(device=device, memory_format=torch.channels_last).train()
    settings = train_settings(spec)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=spec.init_lr, betas=spec.betas, eps=spec.eps, fused=True,
    )  # fmt: skip
    batches = stream.iterate(0)
    started = 0.0
    for step in range(steps):
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
        if step == 0:
            started = time.perf_counter()
    seconds = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    return seconds


class Timed(JobCallbacks):
    """A job's callbacks that also note when steps and checkpoints end."""

    first = last = asked = checkpoint_s = 0.0

    def poll(self) -> Literal["run", "pause", "cancel", "checkpoint"]:
        super().poll()
        self.asked = time.perf_counter()
        return "checkpoint" if self.polls == 2 else "run"

    def on_checkpoint(self, path: Path, step: int, why: str) -> None:
        super().on_checkpoint(path, step, why)
        self.checkpoint_s = time.perf_counter() - self.asked

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        super().on_step(step, metrics)
        self.last = time.perf_counter()
        self.first = self.first or self.last


def as_a_job(
    model: DCAE, stream: BatchStream, pinned: PinnedImages, spec: RetrainSpec, home: Path, device: str
) -> tuple[float, float]:
    """The job's loop: seconds for all steps but the first, and of one checkpoint."""
    settings = Settings(home=home, device=device)
    store = open_store(home)
    job = jobs.submit(store, "retrain", spec.model_dump(mode="json"), device=device)
    claimed = jobs.claim(store, device, "benchmark")
    assert claimed is not None and claimed.id == job.id
    context = Context(store, claimed, settings)
    callbacks = Timed(context, train_settings(spec), pinned, spec.num_save_images)
    masks = {name: torch.rand_like(p) > 0.5 for name, p in model.named_parameters() if p.ndim > 1}
    train(
        model, train_settings(spec), stream, pinned, masks=masks, callbacks=callbacks, folder=context.folder / "checkpoints",
        device=device,
    )  # fmt: skip
    steps_s = callbacks.last - callbacks.first - callbacks.checkpoint_s
    context.close()
    jobs.complete(store, claimed)
    store.close()
    return steps_s, callbacks.checkpoint_s


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    half = float(student_t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    """Alternates blocks of both loops."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=6, choices=range(5, 13), help="Pairs of blocks.")
    parser.add_argument("--steps", type=int, default=16, help="Steps of a block.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    spec = RetrainSpec(
        batch_size=given.batch_size, image_size=given.image_size, n_epochs=1, steps_per_epoch=given.steps, warmup_epochs=0,
        init_lr=1e-4, val_steps=8, num_workers=2,
    )  # fmt: skip
    warm = spec.model_copy(update={"steps_per_epoch": 3})
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

        def stream() -> BatchStream:
            return BatchStream(cache, parts[0].rows, batch_size=spec.batch_size, seed=0, num_workers=2, with_foreground=False)

        def model() -> DCAE:
            return load_model(DEMO_FILE).model

        by_hand(model(), stream(), warm, given.device, 3)
        as_a_job(model(), stream(), pinned, warm, home, given.device)
        ours, theirs, saves = [], [], []
        for pair in range(given.pairs):
            order: list[Callable[[], None]] = [
                lambda: theirs.append(by_hand(model(), stream(), spec, given.device, given.steps)),
                lambda: _keep(as_a_job(model(), stream(), pinned, spec, home, given.device), ours, saves),
            ]
            for block in order if pair % 2 == 0 else reversed(order):
                block()
    counted = given.steps - 1
    ratio, low, high = interval([hand / own for hand, own in zip(theirs, ours, strict=True)])
    save = statistics.median(saves)
    rows = [
        ["loop written by hand", f"{counted / statistics.median(theirs):.3f}"],
        ["a job's loop: figures, progress, control, masks", f"{counted / statistics.median(ours):.3f}"],
    ]
    lines = [
        f"`.venv/bin/python -m benchmarks.retrain_speed` on {machine()}. Demo model, {given.image_size} px, batch {given.batch_size}, "
        f"{spec.dtype}, {given.device}; {given.pairs} alternating pairs of blocks of {given.steps} steps.",
        "",
        *table(["loop", "steps a second (median)"], rows),
        "",
        f"The job's loop runs at {ratio:.1%} of the other's speed (95 % interval {low:.1%} to {high:.1%}). A checkpoint takes "
        f"{save:.2f} s, so one a minute costs {save / 60:.2%} more.",
    ]
    write_section(f"A retraining's loop ({given.device})", lines)


def _keep(found: tuple[float, float], seconds: list[float], saves: list[float]) -> None:
    seconds.append(found[0])
    saves.append(found[1])


if __name__ == "__main__":
    main()
