"""What judging models costs: an evaluation beside a bare loop with the same figures, and Compare and the table of models in a browser.

Goals: an evaluation at most 1.1 times the loop; Compare with 8 models of 64 images within 2 s of a blank page, 1,000 models in the table
within 1 s of it.
"""

from __future__ import annotations

import argparse
import io
import os
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
from core.model_manager import ModelManager
from core.operations import evaluate
from core.operations.context import Context
from core.specs import EvaluateSpec
from core.statistics import interval
from dcaecore import PinnedImages, ReconstructionLoss, load_model, perceptual_scores
from dcaecore.images import foreground, to_square
from dcaecore.metrics import score_images
from dcaecore.pinned import to_tensor, to_uint8
from store import NewImage, NewScores, Store
from store.scores import image_scores, put_new_scores, stored_images
from tests.many_models import fill
from tests.pages.test_browser import CHROMIUM, FLAGS, Server
from tests.pages.test_forest_browser import Blank

MODELS, IMAGES, MANY = 8, 64, 1000
SIZE = 128


def evaluation(manager: ModelManager, ref: str) -> float:
    """Seconds of an evaluation as the worker runs it, its result stored; in this process, so that no start-up counts."""
    spec = EvaluateSpec(num_images=IMAGES, image_size=SIZE)
    jobs.submit(manager.store, "evaluate", spec.model_dump(mode="json"), parent=ref, device="bench")
    job = jobs.claim(manager.store, "bench", "bench")
    assert job is not None
    job = jobs.set_running(manager.store, job, os.getpid(), psutil.Process().create_time())
    started = time.perf_counter()
    context = Context(manager.store, job, manager.settings)
    context.device = "cpu"
    made = evaluate.run(spec, context)
    context.close()
    jobs.complete(manager.store, job, model=None, scores=made.scores, measurements=(), result=made.result)
    return time.perf_counter() - started


@torch.inference_mode()
def bare_loop(weights: Path, parquet: Path, row_ids: list[str]) -> tuple[float, dict[str, float]]:
    """(seconds, means) of the same images and figures written down by hand: read, run, score; nothing is stored."""
    started = time.perf_counter()
    model = load_model(weights).model.eval()
    rows = pq.read_table(parquet)
    images, episodes = [], []
    for name in row_ids:
        row = rows.slice(int(name), 1).to_pylist()[0]
        with Image.open(io.BytesIO(row["frame_image"]["bytes"])) as opened:
            images.append(to_square(opened, SIZE))
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
            masks = (torch.from_numpy(m[start + i])[None, None] for m in (content, moving))
            losses.append(float(loss(y[i : i + 1], x[i : i + 1], *masks)[0]))
    output = np.concatenate(outputs)
    found = {**score_images(output, pinned), **perceptual_scores(output, targets, content), "loss": np.array(losses)}
    means = {key: float(np.nanmean(values)) for key, values in found.items()}
    return time.perf_counter() - started, means


def evaluation_rows(rounds: int) -> list[list[str]]:
    """Both ways in turn on the demo model; the ratio of each round, and its interval."""
    with service() as manager:
        model = manager.initialize_model("demo", name="demo")
        evaluation(manager, model.id)  # warms files, threads and caches
        judged = image_scores(manager.store, model.id)
        assert judged is not None and model.blob_digest is not None
        weights = manager.store.blobs.path(model.blob_digest)
        parquet = manager.settings.data_folder / "samples" / "mspacman.parquet"
        _, means = bare_loop(weights, parquet, judged.row_ids)
        stored = manager.get_model_metrics(model.id)
        for key, value in means.items():
            assert np.isclose(stored[key], value, rtol=1e-4), f"the two ways differ in {key}: {stored[key]} and {value}"
        pairs = [(evaluation(manager, model.id), bare_loop(weights, parquet, judged.row_ids)[0]) for _ in range(rounds)]
    ratio = interval([ours / bare for ours, bare in pairs])
    spread = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio.low is not None else "too few rounds"
    ours, bare = (median(column) for column in zip(*pairs, strict=True))
    return [
        [f"evaluation of {IMAGES} images", f"{ours:.2f} s", f"bare loop {bare:.2f} s", f"{ratio.mean:.3f} x ({spread})", "1.1 x"]
    ]


def fill_compared(store: Store, parquet: Path) -> list[str]:
    """Eight models with 64 judged and drawn images each; reconstructions are frames with noise that grows from model to model."""
    refs = fill(store, MODELS)
    rows, draw = pq.read_table(parquet), np.random.default_rng(0)
    frames = []
    for index in range(IMAGES):
        with Image.open(io.BytesIO(rows.slice(index, 1).to_pylist()[0]["frame_image"]["bytes"])) as opened:
            frames.append(to_square(opened, SIZE)[0])
    targets, content = np.stack(frames), np.ones((IMAGES, SIZE, SIZE), dtype=bool)
    names = tuple(f"{index:08d}" for index in range(IMAGES))
    pinned = PinnedImages(targets, content, None, "", None, names, (), "")
    protocol = {
        "version": 1,
        "images_sha256": "bench",
        "num_images": IMAGES,
        "image_size": SIZE,
        "dtype": "float32",
        "source": "bench",
    }
    for number, ref in enumerate(refs):
        noisy = targets + draw.normal(0, 4 + 2 * number, targets.shape)
        made = np.clip(noisy, 0, 255).astype(np.uint8)
        found = {**score_images(made, pinned), **perceptual_scores(made, targets, content)}
        pictures = [
            NewImage(index, _png(image), kind)
            for kind, images in (("original", targets), ("reconstruction", made))
            for index, image in enumerate(images)
        ]
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
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


DRAWN = """wanted => [...document.querySelectorAll('h3')].some(h => h.innerText === 'Models')
    && document.querySelectorAll('[data-testid=stImage] img').length >= wanted
    && [...document.querySelectorAll('[data-testid=stImage] img')].every(i => i.complete && i.naturalWidth > 0)"""
LISTED = """() => document.querySelector('[data-testid=stDataFrame] canvas') !== null"""


def browser_rows(rounds: int) -> list[list[str]]:
    """Seconds until Compare's pictures, and the table's rows, are there, beside a blank page, in turn."""
    with ExitStack() as stack:
        few, many = stack.enter_context(service()), stack.enter_context(service())
        refs = fill_compared(few.store, few.settings.data_folder / "samples" / "mspacman.parquet")
        fill(many.store, MANY)
        script = few.settings.home / "blank.py"
        script.write_text("import streamlit as st\nst.write('blank')\n")
        servers = [Server(few.settings), Server(many.settings), Blank(few.settings, script)]
        for server in servers:
            stack.callback(server.stop)
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        compare, listed, blank = (server.url for server in servers)
        ways: dict[str, Callable[[], None]] = {
            "blank": lambda: _open(page, blank, "() => document.body.innerText.includes('blank')"),
            "compare": lambda: _open(page, f"{compare}/Compare?models={','.join(refs)}", DRAWN, 8 * (1 + MODELS)),
            "table": lambda: _open(page, f"{listed}/Lineage?search=model", LISTED),
        }
        for open_once in ways.values():  # servers, scripts and caches are warm then
            open_once()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, open_once in ways.items():
                started = time.perf_counter()
                open_once()
                times[name].append(time.perf_counter() - started)
    rows = []
    for name, title, goal in (
        ("compare", f"Compare, {MODELS} models of {IMAGES} images", "2 s"), ("table", f"{MANY:,} models in the table", "1 s")
    ):  # fmt: skip
        beyond = [own - base for own, base in zip(times[name], times["blank"], strict=True)]
        low, high = min(beyond), max(beyond)
        away = f"+{median(beyond):.2f} s ({low:.2f} to {high:.2f})"
        rows.append([title, f"{median(times[name]):.2f} s", f"blank page {median(times['blank']):.2f} s", away, goal])
    return rows


def _open(page: Page, address: str, ready: str, argument: Any = None) -> None:
    page.goto(address)
    page.wait_for_function(ready, arg=argument)


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="of the evaluation; 8 at least give an interval")
    parser.add_argument("--openings", type=int, default=5, help="of each page")
    given = parser.parse_args()
    rows = [*evaluation_rows(given.rounds), *browser_rows(given.openings)]
    write_section(
        "Judging models",
        [
            f"`.venv/bin/python -m benchmarks.compare_speed` on {machine()}. Ways run in turn: medians; of the evaluation (demo model, "
            f"{SIZE} px) the mean ratio of {given.rounds} rounds with its 95 % interval, of the pages the difference to a blank page "
            f"of the same round, {given.openings} rounds, least to largest. A page is there when its pictures, or its table, are drawn.",
            "",
            *table(["", "ours", "beside", "ratio or difference", "goal"], rows),
        ],
    )


if __name__ == "__main__":
    main()
