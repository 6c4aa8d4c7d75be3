"""Thousands of models in a real browser: painted, and a click on one answered. Seconds go to stdout (`pytest -s`), beside a blank page's.

2,000 here; `OFFSHOOT_TEST_MODELS=10000` takes a minute to make them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

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
NUMBER = int(os.environ.get("OFFSHOOT_TEST_MODELS", "2000"))
PAINTED = """() => [...document.querySelectorAll('canvas')].some(c => c.width > 400 && c.height > 200 &&
    new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size > 3)"""


class Blank(Server):
    """A Streamlit page with one word on it."""

    def __init__(self, settings, script) -> None:
        self.script = script
        super().__init__(settings)

    def start(self) -> None:
        run = subprocess.Popen

        def instead(command, **options):
            return run([str(self.script) if part == "Home.py" else part for part in command], **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(subprocess, "Popen", instead)
            super().start()


def pixel(drawing: Drawing, forest: Forest, ref: str, width: float) -> tuple[float, float]:
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


def test_thousands_of_models_are_painted_and_clicked(settings, page, tmp_path):
    manager = ModelManager(settings=settings)
    fill(manager.store, NUMBER)
    (tmp_path / "blank.py").write_text("import streamlit as st\nst.write('blank')\n")
    blank, server = Blank(settings, tmp_path / "blank.py"), Server(settings)
    try:
        for address in (blank.url, f"{server.url}/Lineage?view=forest"):  # both servers warm, both pages' scripts in the cache
            page.goto(address)
            page.get_by_text("blank" if address == blank.url else "models are drawn").first.wait_for()
        times: dict[str, list[float]] = {"blank": [], "forest": [], "click": []}
        forest = manager.forest()
        for _ in range(3):
            started = time.perf_counter()
            page.goto(blank.url)
            page.get_by_text("blank").first.wait_for()
            times["blank"].append(time.perf_counter() - started)
            started = time.perf_counter()
            page.goto(f"{server.url}/Lineage?view=forest")
            page.wait_for_function(PAINTED)
            times["forest"].append(time.perf_counter() - started)
        page.locator("[data-test-script-state='notRunning']").wait_for()
        chosen = manager.current().id
        drawing = draw(forest, forest.models, chosen=chosen)
        canvas = page.locator("canvas").first
        box = canvas.bounding_box()
        leaf = next(leaf for leaf in forest.models if leaf.kind == "retrained")
        for ref in (leaf.id, forest.models[-1].id):
            x, y = pixel(drawing, forest, ref, box["width"])
            before = page.url
            started = time.perf_counter()
            page.mouse.click(box["x"] + x, box["y"] + y)  # the chart lies in layers, any of which may be on top
            page.wait_for_function("was => location.href != was && location.href.includes('model=m_')", arg=before)
            times["click"].append(time.perf_counter() - started)
        assert manager.get_model(page.url.split("model=")[1].split("&")[0])
    finally:
        blank.stop()
        server.stop()
        manager.store.close()
    best = {name: min(found) for name, found in times.items()}
    sys.stdout.write(f"\n{NUMBER} models: " + ", ".join(f"{name} {value:.2f} s" for name, value in best.items()) + "\n")
