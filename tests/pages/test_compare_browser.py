"""Compare in a real browser on a real server and worker: slider, order of the images, upload, report, the table of all models."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

import store as st
from core.compare import compare
from core.seeing import image_lines, zoomed
from tests.pages.test_browser import Server, page

__all__ = ["page"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def server(bench, pair):
    running = Server(bench.settings)
    yield running
    running.stop()


@pytest.fixture
def compared(server, page, pair):
    page.goto(f"{server.url}/Compare?models={','.join(pair)}")
    page.get_by_role("heading", name="Export").wait_for()
    return page


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def test_the_slider_lays_one_picture_over_the_other(compared, bench, pair):
    line = image_lines(bench.store, compare(bench.store, pair), pair[0])[0]
    ends = {"Home": line.made[pair[1]], "End": line.original}  # at 0 % the right one alone, at 100 % the left one
    closer = compared.get_by_test_id("stImage").filter(has_text=re.compile(r"original \| ")).locator("img")
    thumb = compared.get_by_test_id("stSlider").filter(has_text="Divide at").get_by_role("slider")
    for key, digest in ends.items():
        before = closer.get_attribute("src")
        thumb.press(key)
        expect(closer).not_to_have_attribute("src", before or "")
        compared.wait_for_load_state("networkidle")
        address = closer.evaluate("image => image.src")
        shown = pixels(compared.request.get(address).body())
        assert np.array_equal(shown, pixels(zoomed(bench.store.blobs.read(digest), 1)))


def test_images_that_lost_most_come_first_and_a_report_is_downloaded(compared, bench, pair):
    shown = compared.get_by_test_id("stImage")
    shown.nth(3).wait_for()  # a column each of originals and both models, and the closer look
    lines = [shown.nth(column).inner_text().split("\n") for column in (1, 2)]
    before, after = ([float(text.split()[0]) for text in own if text.endswith(" dB")] for own in lines)
    assert len(before) == len(after) == 8, lines
    losses = [b - a for a, b in zip(before, after, strict=True)]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    with compared.expect_download() as download:
        compared.get_by_role("button", name="JSON").click()
    report = json.loads(download.value.path().read_text())
    assert [model["id"] for model in report["models"]] == list(pair) and download.value.suggested_filename.endswith(".json")


def test_a_picture_is_uploaded_and_one_that_is_none_is_refused(compared, bench, pair):
    draw = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(draw).save(data, "PNG")
    chooser = compared.locator("input[type=file]").first
    chooser.set_input_files({"name": "note.png", "mimeType": "image/png", "buffer": b"no picture at all"})
    button = compared.get_by_role("button", name="Reconstruct", exact=True)
    button.click()
    compared.get_by_text("note.png is no image that can be read").wait_for()
    compared.reload()
    compared.get_by_role("heading", name="Export").wait_for()
    chooser.set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": data.getvalue()})
    button.click()
    compared.get_by_text("latent channels, each from its least to its largest").nth(1).wait_for()
    (job,) = st.jobs.list_jobs(bench.store, ("done",), 1, operations=("reconstruct",))
    assert [one["model_id"] for one in job.result["models"]] == list(pair)
    for one in job.result["models"]:
        compared.get_by_text(f"{one['psnr_db']:.2f} dB").first.wait_for()
