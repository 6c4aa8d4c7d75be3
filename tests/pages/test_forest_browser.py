"""Ten thousand models in a real browser: painted, hovered, clicked, searched, focused. Seconds are `benchmarks.forest`'s."""

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
    new Set(new Uint32Array(c.getContext('2d').getImageData(0, c.height >> 1, c.width, 40).data.buffer)).size > 3)"""
"""True once a large canvas shows more than a few colours in a strip through its middle; the whole would take long to read."""
DONE = "[data-test-script-state='notRunning']"
CLICKED = "was => location.href != was && location.href.includes('model=m_')"


def pixel(drawing: Drawing, ref: str, width: float) -> tuple[float, float]:
    """Where a model stands on the canvas, from the options' own axes and margins."""
    options = drawing.options
    ((x, y),) = [
        (value["value"] if isinstance(value, dict) else value)[:2]
        for number, refs in drawing.series.items() for at, value in enumerate(options["series"][number]["data"])
        if refs[at] == ref
    ]  # fmt: skip
    grid, across, down = options["grid"], options["xAxis"], options["yAxis"]
    inner, tall = width - grid["left"] - grid["right"], drawing.height - grid["top"] - grid["bottom"]
    return (
        grid["left"] + inner * (x - across["min"]) / (across["max"] - across["min"]),
        grid["top"] + tall * (y - down["min"]) / (down["max"] - down["min"]),
    )


def where(page, forest: Forest, chosen: str, ref: str) -> tuple[float, float]:
    """Where a model of the whole forest, of which `chosen` is the ringed one, stands in the window."""
    drawing = draw(forest, forest.models, chosen=chosen)
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = pixel(drawing, ref, box["width"])
    return box["x"] + x, box["y"] + y


def click_model(page, forest: Forest, chosen: str, ref: str) -> None:
    """A click on a model of the whole forest."""
    page.mouse.click(*where(page, forest, chosen, ref))  # the chart lies in layers, any of which may be on top


def hover_model(page, forest: Forest, chosen: str, ref: str) -> None:
    """The pointer over a model of the whole forest, after a short way there."""
    x, y = where(page, forest, chosen, ref)
    page.mouse.move(x - 30, y - 3)
    page.mouse.move(x, y, steps=4)


def test_ten_thousand_models_are_painted_hovered_clicked_searched_and_coloured(settings, page):
    manager = ModelManager(settings=settings)
    fill(manager.store, 10_000)
    server = Server(settings)
    try:
        page.goto(f"{server.url}/Lineage?view=forest&search=psnr_db+%3E+25&colour=psnr_db&size=decode_ms")
        page.wait_for_function(PAINTED, polling=50)
        page.get_by_text("10000 of 10000 models are drawn").wait_for()
        page.get_by_text("models fit the search; the others are pale").wait_for()
        page.goto(f"{server.url}/Lineage?view=forest")
        page.wait_for_function(PAINTED, polling=50)
        page.locator(DONE).wait_for()
        forest, current = manager.forest(), manager.current()
        wanted = next(leaf for leaf in forest.models if leaf.kind == "baseline")
        hover_model(page, forest, current.id, wanted.id)
        page.get_by_text(wanted.name, exact=True).first.wait_for()
        before = page.url
        click_model(page, forest, current.id, wanted.id)
        page.wait_for_function(CLICKED, arg=before)
        assert page.url.split("model=")[1].split("&")[0] == wanted.id
        page.get_by_role("heading", name=wanted.name).wait_for()
        page.locator(DONE).wait_for()
        page.get_by_text("focus", exact=True).first.click()
        page.get_by_text("300 of 10000 models are drawn").wait_for()
        page.get_by_text("more descendants do not fit").wait_for()
        page.wait_for_function(PAINTED, polling=50)
        assert "view=forest" not in page.url and wanted.id in page.url
    finally:
        server.stop()
        manager.store.close()


def test_a_click_counts_though_another_wish_overtakes_it(settings, page):
    """The second wish is sent before the browser hears of the first, so its URL lacks the model; going back still leads back."""
    manager = ModelManager(settings=settings)
    fill(manager.store, 12)
    server, held = Server(settings), None

    def between(socket) -> None:
        upstream = socket.connect_to_server()
        upstream.on_message(lambda message: socket.send(message) if held is None else held.append((socket, message)))

    page.route_web_socket("**/_stcore/stream", between)
    try:
        page.goto(f"{server.url}/Lineage?view=forest")
        page.wait_for_function(PAINTED, polling=50)
        page.locator(DONE).wait_for()
        forest, current = manager.forest(), manager.current()
        wanted = next(leaf for leaf in forest.models if leaf.id != current.id)
        held = []
        click_model(page, forest, current.id, wanted.id)
        page.wait_for_timeout(1000)
        assert held and "model=" not in page.url
        page.get_by_text("models as a table").click()
        page.wait_for_timeout(1000)
        late, held = held, None
        for socket, message in late:
            socket.send(message)
        page.get_by_test_id("stDataFrame").wait_for()
        page.get_by_role("heading", name=wanted.name).wait_for()
        page.locator(DONE).wait_for()
        assert wanted.id in page.url and page.get_by_role("heading", name=wanted.name).count() == 1
        page.go_back()
        page.get_by_role("heading", name=current.name).wait_for()
    finally:
        server.stop()
        manager.store.close()
