"""Seconds until thousands of models are painted in a real browser, beside a blank Streamlit page's, and until a click is answered.

Both servers are warm: each page was opened once before. A visit is a fresh load of the whole page; visits of both alternate, each begun
once the page before has come to its end. A click counts until the model stands in the URL, and until its card is on the page.
`OFFSHOOT_CHROMIUM` names the browser.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from benchmarks.results import machine, table, write_section
from core.forest import Forest
from core.model_manager import ModelManager
from core.settings import Settings
from tests.conftest import stop_workers
from tests.many_models import fill
from tests.pages.test_browser import CHROMIUM, FLAGS, Server
from tests.pages.test_forest_browser import CLICKED, DONE, PAINTED, click_model


def visit(page: Any, address: str, shown: str | None) -> float:
    """Seconds until `shown` (a text; None: the forest) is there."""
    started = time.perf_counter()
    page.goto(address)
    if shown is None:
        page.wait_for_function(PAINTED, polling=50)
    else:
        page.get_by_text(shown).first.wait_for()
    seconds = time.perf_counter() - started
    page.locator(DONE).wait_for()
    return seconds


def click(page: Any, forest: Forest, manager: ModelManager, ref: str) -> tuple[float, float]:
    """Seconds until a click near a model has put one in the URL, and until that one's name heads the card."""
    chosen = page.url.split("model=")[1].split("&")[0] if "model=" in page.url else manager.current().id  # type: ignore[union-attr]
    before = page.url
    started = time.perf_counter()
    click_model(page, forest, chosen, ref)
    page.wait_for_function(CLICKED, arg=before)
    in_url = time.perf_counter() - started
    # Ten thousand lie over each other: a neighbour may be on top.
    name = manager.get_model(page.url.split("model=")[1].split("&")[0]).name
    page.get_by_role("heading", name=name).first.wait_for()
    return in_url, time.perf_counter() - started


def measure(home: Path, data: Path, visits: int) -> dict[str, list[float]]:
    """Seconds of each visit and click on a filled store."""
    settings = Settings(home=home, data_dir=data, device="cpu", num_threads=1)
    manager = ModelManager(settings=settings)
    forest = manager.forest()
    script = home / "blank.py"
    script.write_text("import streamlit as st\nst.write('blank')\n")
    found: dict[str, list[float]] = {name: [] for name in ("blank", "focus", "forest", "click", "card")}
    blank, server = Server(settings, str(script)), Server(settings)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(120_000)
            whole = f"{server.url}/Lineage?view=forest"
            visit(page, blank.url, "blank")
            visit(page, whole, "models are drawn")
            for _ in range(visits):
                found["blank"].append(visit(page, blank.url, "blank"))
                found["focus"].append(visit(page, f"{server.url}/Lineage", None))
                found["forest"].append(visit(page, whole, None))
            step = max(1, len(forest.models) // (visits + 1))
            for number in range(visits):
                in_url, on_card = click(page, forest, manager, forest.models[(number + 1) * step].id)
                found["click"].append(in_url)
                found["card"].append(on_card)
                page.locator(DONE).wait_for()
            browser.close()
    finally:
        blank.stop()
        server.stop()
        manager.store.close()
        stop_workers(home)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--home", type=Path, help="A store that an earlier run has filled, or a folder to keep it in.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = given.home or Path(scratch) / "home"
        manager = ModelManager(home)
        if len(manager.forest().models) < given.models:
            fill(manager.store, given.models)
        count = len(manager.forest().models)
        manager.store.close()
        found = measure(home, Path(scratch) / "data", given.visits)
    mid = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        ["a blank Streamlit page", f"{mid['blank']:.2f}", ""],
        ["the focus around the current model, painted", f"{mid['focus']:.2f}", f"{mid['focus'] - mid['blank']:+.2f}"],
        ["the whole forest, painted", f"{mid['forest']:.2f}", f"{mid['forest'] - mid['blank']:+.2f}"],
        ["a click in it until the URL has the model", f"{mid['click']:.2f}", ""],
        ["a click in it until the model's card is there", f"{mid['card']:.2f}", ""],
    ]
    write_section(
        "The forest in a browser",
        [
            f"`.venv/bin/python -m benchmarks.forest` on {machine()}, browser and server on the same cores. {count:,} models, 1400 x 1000 "
            f"pixels; medians of {given.visits}, visits alternate.",
            "",
            *table(["what", "seconds", "after the blank page"], rows),
        ],
    )


if __name__ == "__main__":
    main()
