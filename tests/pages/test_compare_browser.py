"""Compare in a real browser on a real server: the slider shows the very pixels that the model made."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

import store as st
from core.compare import compare
from core.seeing import image_lines, zoomed
from core.settings import Settings
from tests.conftest import stop_workers
from tests.core.in_process import InProcess
from tests.pages.test_browser import Server, page

__all__ = ["page"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    home = tmp_path_factory.mktemp("browser") / "home"
    made = InProcess(Settings(home=home, data_dir=data_dir, device="cpu", num_threads=1))
    yield made
    made.store.close()
    stop_workers(home)


@pytest.fixture(scope="module")
def pair(bench):
    base = bench.add(name="base").id
    pruned = bench.run("prune", base, rate=0.5).model_id
    st.set_alias(bench.store, "current", base)
    for ref in (base, pruned):
        bench.run("evaluate", ref, image_size=32, num_images=12, num_save_images=12)
    return base, pruned


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
