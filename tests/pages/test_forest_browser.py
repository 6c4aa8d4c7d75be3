"""Hundreds of models in a real browser: painted, a click on one answered, a search in the URL. Seconds are `benchmarks.forest`'s."""

from __future__ import annotations

import pytest

from core.forest import Forest
from core.model_manager import ModelManager
from pages.ui.forest import Drawing, draw
from tests.many_models import fill
from tests.pages.test_browser import Server, page

__all__ = ["page"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
PAINTED = """() => [...document.querySelectorAll('canvas')].some(c => c.width > 400 && c.height > 200 &&
    new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer).filter((_, n) => n % 7 == 0))
        .size > 3)"""
"""True once a large canvas shows more than a few colours; a look at each seventh pixel."""
CLICKED = "was => location.href != was && location.href.includes('model=m_')"


def pixel(drawing: Drawing, ref: str, width: float) -> tuple[float, float]:
    """Where a model stands on the canvas, from the options' own axes and margins."""
    options = drawing.options
    ((x, y),) = [
        value[:2] for number, refs in drawing.series.items() for at, value in enumerate(options["series"][number]["data"])
        if refs[at] == ref
    ]  # fmt: skip
    grid, across, down = options["grid"], options["xAxis"], options["yAxis"]
    inner, tall = width - grid["left"] - grid["right"], drawing.height - grid["top"] - grid["bottom"]
    return (
        grid["left"] + inner * (x - across["min"]) / (across["max"] - across["min"]),
        grid["top"] + tall * (y - down["min"]) / (down["max"] - down["min"]),
    )


def click_model(page, forest: Forest, chosen: str, ref: str) -> None:
    """A click on a model of the whole forest, of which `chosen` is the ringed one."""
    drawing = draw(forest, forest.models, chosen=chosen)
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = pixel(drawing, ref, box["width"])
    page.mouse.click(box["x"] + x, box["y"] + y)  # the chart lies in layers, any of which may be on top


def test_hundreds_of_models_are_painted_clicked_and_searched(settings, page):
    manager = ModelManager(settings=settings)
    fill(manager.store, 400)
    server = Server(settings)
    try:
        page.goto(f"{server.url}/Lineage?view=forest&search=psnr_db+%3E+25")
        page.wait_for_function(PAINTED, polling=50)
        page.get_by_text("400 of 400 models are drawn").wait_for()
        page.get_by_text("models fit the search; the others are pale").wait_for()
        page.goto(f"{server.url}/Lineage?view=forest")
        page.wait_for_function(PAINTED, polling=50)
        page.locator("[data-test-script-state='notRunning']").wait_for()
        forest, current = manager.forest(), manager.current()
        wanted = next(leaf.id for leaf in forest.models if leaf.kind == "baseline")
        before = page.url
        click_model(page, forest, current.id, wanted)
        page.wait_for_function(CLICKED, arg=before)
        assert page.url.split("model=")[1].split("&")[0] == wanted
        page.get_by_role("heading", name=manager.get_model(wanted).name).wait_for()
    finally:
        server.stop()
        manager.store.close()
