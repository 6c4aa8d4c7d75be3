"""What judging models costs: an evaluation beside a loop written by hand, and Compare and its table of all models in a real browser.

The loop reads, runs and scores the same images with the same figures and keeps nothing; the evaluation stores figures and pictures too.
Both run in this process in turn, so a machine that slows down slows both. Pages are timed beside a blank Streamlit page, visits of all
alternate, and every server is warm: each page was opened once before. `OFFSHOOT_CHROMIUM` names the browser.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import store.jobs as jobs
from benchmarks.fresh import service
from benchmarks.results import machine, table, write_section
from benchmarks.retrain_speed import interval
from core.model_manager import ModelManager
from core.operations import evaluate
from core.operations.context import Context
from core.specs import EvaluateSpec
from dcaecore import PinnedImages, ReconstructionLoss, load_model, perceptual_scores
from dcaecore.images import foreground, to_square
from dcaecore.metrics import score_images, score_psnr
from dcaecore.pinned import to_tensor, to_uint8
from pages.ui.picture_grid import MOST_PICTURES, MOST_ROWS
from store import NewImage, NewScores, Store
from store.scores import image_scores, put_new_scores, stored_images
from tests.conftest import stop_workers
from tests.many_models import fill
from tests.pages.test_browser import CHROMIUM, FLAGS, Server

MODELS, IMAGES, MANY = 8, 64, 1000
DRAWN_FIGURES = ("foreground_psnr_db", "ssim", "flip", "accuracy", "loss", "l1", "mse", "latent_drift")
GOALS = {"evaluation": 1.1, "compare": 2.0, "table": 1.0}


def evaluation(manager: ModelManager, ref: str, spec: EvaluateSpec) -> float:
    """Seconds of an evaluation as a job runs it, its result stored; in this process, so that no start-up counts."""
    jobs.submit(manager.store, "evaluate", spec.model_dump(mode="json"), parent=ref, device="bench")
    job = jobs.claim(manager.store, "bench", "bench")
    assert job is not None
    job = jobs.set_running(manager.store, job, os.getpid(), psutil.Process().create_time())
    started = time.perf_counter()
    context = Context(manager.store, job, manager.settings)
    context.device = "cpu"
    made = evaluate.run(spec, context)
    context.close()
    jobs.complete(manager.store, job, scores=made.scores, result=made.result)
    return time.perf_counter() - started


@torch.inference_mode()
def bare_loop(weights: Path, parquet: Path, row_ids: list[str], size: int) -> tuple[float, dict[str, float]]:
    """(seconds, means) of the same images and figures, as one writes it down: read, run, score."""
    started = time.perf_counter()
    model = load_model(weights).model.eval()
    rows = pq.read_table(parquet)
    images, episodes = [], []
    for name in row_ids:
        row = rows.slice(int(name), 1).to_pylist()[0]
        with Image.open(io.BytesIO(row["frame_image"]["bytes"])) as opened:
            images.append(to_square(opened, size))
        episodes.append(row["episode"])
    targets = np.stack([image for image, _ in images])
    content = np.zeros(targets.shape[:3], dtype=bool)
    for mask, (_, (top, bottom, left, right)) in zip(content, images, strict=True):
        mask[top:bottom, left:right] = True
    moving = np.zeros_like(content)
    for episode in set(episodes):
        own = np.array([other == episode for other in episodes])
        moving[own] = foreground(targets[own], np.median(targets[own], axis=0).astype(np.uint8)) & content[own]
    pinned = PinnedImages(targets, content, moving, "", None, tuple(row_ids), (), "")
    loss, losses, outputs = ReconstructionLoss("l1"), [], []
    for start in range(0, len(targets), 4):
        x = to_tensor(targets[start : start + 4])
        y = model(x)
        outputs.append(to_uint8(y))
        for i in range(len(x)):
            losses.append(float(loss(y[i : i + 1], x[i : i + 1], torch.from_numpy(moving[start + i])[None, None])[0]))
    output = np.concatenate(outputs)
    found = {**score_images(output, pinned), **perceptual_scores(output, targets, content), "loss": np.array(losses)}
    means = {key: float(np.nanmean(values)) for key, values in found.items()}
    return time.perf_counter() - started, means


def evaluation_rows(num_images: int, size: int, pairs: int) -> list[list[str]]:
    """Both in turn on the demo model, each first in every second pair; the median ratio with its interval."""
    spec = EvaluateSpec(num_images=num_images, image_size=size)
    with service() as manager:
        model = manager.initialize_model("demo", name="demo")
        evaluation(manager, model.id, spec)  # warms files, threads and caches
        judged = image_scores(manager.store, model.id)
        assert judged is not None
        parquet = manager.settings.data_folder / "samples" / "mspacman.parquet"
        given = manager.store.blobs.path(str(model.blob_digest)), parquet, judged.row_ids, size
        _, means = bare_loop(*given)
        stored = manager.get_model_metrics(model.id)
        for key, value in means.items():
            assert np.isclose(stored[key] or 0.0, value, rtol=1e-4), f"the two differ in {key}: {stored[key]} and {value}"
        ours, bare = [], []
        ways: list[Callable[[], None]] = [
            lambda: ours.append(evaluation(manager, model.id, spec)),
            lambda: bare.append(bare_loop(*given)[0]),
        ]
        for pair in range(pairs):
            for way in ways if pair % 2 == 0 else ways[::-1]:
                way()
        stop_workers(manager.settings.home)
    ratio, low, high = interval([a / b for a, b in zip(ours, bare, strict=True)])
    told = f"{ratio:.3f} x ({low:.3f} to {high:.3f})"
    return [[f"{len(judged.row_ids)} images", f"{median(ours):.2f} s", f"{median(bare):.2f} s", told, f"{GOALS['evaluation']} x"]]


def fill_compared(store: Store, parquet: Path, size: int, num_models: int, num_images: int) -> list[str]:
    """Models with judged and drawn images each: reconstructions are frames with noise that grows from model to model."""
    refs = fill(store, num_models)
    rows, draw = pq.read_table(parquet), np.random.default_rng(0)
    frames = []
    for index in range(num_images):
        with Image.open(io.BytesIO(rows.slice(index % len(rows), 1).to_pylist()[0]["frame_image"]["bytes"])) as opened:
            frames.append(to_square(opened, size)[0])
    targets, content = np.stack(frames), np.ones((num_images, size, size), dtype=bool)
    names = tuple(f"{index:08d}" for index in range(num_images))
    pinned = PinnedImages(targets, content, None, "", None, names, (), "")
    protocol = {
        "version": 1, "images_sha256": "bench", "num_images": num_images, "image_size": size, "dtype": "float32", "source": "bench"
    }  # fmt: skip
    originals = [_png(image) for image in targets]
    for number, ref in enumerate(refs):
        made = np.clip(targets + draw.normal(0, 4 + 2 * number, targets.shape), 0, 255).astype(np.uint8)
        # As many figures as an evaluation has; only their number counts here.
        found = {**score_psnr(made, pinned), **{key: draw.random(num_images) for key in DRAWN_FIGURES}}
        pictures = [NewImage(index, png, "original") for index, png in enumerate(originals)]
        pictures += [NewImage(index, _png(image)) for index, image in enumerate(made)]
        entry = NewScores(
            protocol, "test", {key: float(values.mean()) for key, values in found.items()},
            {key: values.tolist() for key, values in found.items()}, names, pictures, ref,
        )  # fmt: skip
        blobs = stored_images(store, entry)
        with store.write() as session:
            put_new_scores(store, session, entry, blobs, model_id=ref, job_id=None)
    return refs


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


DRAWN = """wanted => {
    const pictures = [...document.querySelectorAll('[data-testid=stImage] img')];
    return pictures.length >= wanted && pictures.every(i => i.complete && i.naturalWidth > 0) &&
        document.querySelector("[data-test-script-state='notRunning']") !== null;
}"""
"""True once the script has ended and all its pictures are there."""
LISTED = """() => document.querySelector('[data-testid=stDataFrame] canvas') !== null &&
    document.querySelector("[data-test-script-state='notRunning']") !== null"""
BLANK = "() => document.body.innerText.includes('blank') && document.querySelector(\"[data-test-script-state='notRunning']\") !== null"


def browser_rows(visits: int, size: int, num_models: int, num_images: int, many: int) -> list[list[str]]:
    """Seconds until Compare's pictures, and the table's rows, are there, beside a blank page."""
    with ExitStack() as stack:
        few, full = stack.enter_context(service()), stack.enter_context(service())
        refs = fill_compared(few.store, few.settings.data_folder / "samples" / "mspacman.parquet", size, num_models, num_images)
        fill(full.store, many)
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "blank.py"
        script.write_text("import streamlit as st\nst.write('blank')\n")
        servers = [Server(few.settings), Server(full.settings), Server(few.settings, str(script))]
        for home in (few.settings.home, full.settings.home):
            stack.callback(stop_workers, home)
        for server in servers:
            stack.callback(server.stop)
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(45_000)
        compare, listed, blank = (server.url for server in servers)
        # The rows shown at first, each with the original, and the closer look.
        drawn = max(3, min(MOST_ROWS, MOST_PICTURES // (1 + num_models))) * (1 + num_models) + 1
        ways: dict[str, Callable[[], None]] = {
            "blank": lambda: _open(page, blank, BLANK),
            "compare": lambda: _open(page, f"{compare}/Compare?models={','.join(refs)}", DRAWN, drawn),
            "table": lambda: _open(page, f"{listed}/Compare?view=all+models", LISTED),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for visit in range(-1, visits):
            for name, open_once in ways.items():
                started = time.perf_counter()
                open_once()
                if visit >= 0:
                    times[name].append(time.perf_counter() - started)
    rows = []
    titles = {"compare": f"Compare, {num_models} models of {num_images} images", "table": f"{many:,} models in Compare's table"}
    for name, title in titles.items():
        beyond = [own - base for own, base in zip(times[name], times["blank"], strict=True)]
        away = f"{median(beyond):+.2f} s ({min(beyond):+.2f} to {max(beyond):+.2f})"
        rows.append([title, f"{median(times[name]):.2f} s", f"{median(times['blank']):.2f} s", away, f"+{GOALS[name]:g} s"])
    return rows


def _open(page: Page, address: str, ready: str, argument: Any = None) -> None:
    page.goto(address)
    page.wait_for_function(ready, arg=argument, polling=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["evaluation", "pages"])
    parser.add_argument("--pairs", type=int, default=12, help="Of evaluation and loop.")
    parser.add_argument("--visits", type=int, default=5, help="Of each page.")
    parser.add_argument("--small", action="store_true", help="Does it run? Small sizes, and RESULTS.md stays as it is.")
    given = parser.parse_args()
    if given.pairs < 5:
        parser.error("at least 5 pairs, or the interval says nothing")
    size, images, models, many = (32, 16, 3, 60) if given.small else (128, IMAGES, MODELS, MANY)
    command = f"`.venv/bin/python -m benchmarks.compare_speed` on {machine()}."
    sections = []
    if given.only != "pages":
        told = (
            f"{command} Demo model, {size} px, {given.pairs} pairs: medians, and the median ratio of a pair with its 95 % bootstrap "
            "interval. The loop reads, runs and scores the same images; the evaluation stores figures and pictures besides."
        )
        head = ["", "evaluation", "bare loop", "ratio", "goal"]
        rows = evaluation_rows(images, size, 5 if given.small else given.pairs)
        sections.append(("An evaluation beside a bare loop", [told, "", *table(head, rows)]))
    if given.only != "evaluation":
        told = (
            f"{command} Browser and servers on the same cores, {given.visits} visits of each page in turn: medians, and the difference "
            "to the blank page of the same turn with the least and the largest. A page is there when its script has ended and its "
            "pictures, or its table, are drawn."
        )
        head = ["", "page", "blank page", "difference", "goal"]
        rows = browser_rows(given.visits, size, models, images, many)
        sections.append(("Compare and its table of all models beside a blank page", [told, "", *table(head, rows)]))
    for title, lines in sections:
        if given.small:
            print(f"{title}\n" + "\n".join(lines))  # noqa: T201
        else:
            write_section(title, lines)


if __name__ == "__main__":
    main()
