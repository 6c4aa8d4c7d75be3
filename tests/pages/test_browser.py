"""A real browser, a real server, a real worker: three clicks, a refresh and a restart in mid-job, cancel, a deep link."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import get_args

import pytest

from core.model_manager import ModelManager
from core.specs import METHOD_TITLES, UnitScore

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("OFFSHOOT_CHROMIUM") or shutil.which("chromium")
"""`make test` finds or installs one. Without any these tests fail: the pages would go untested (`-m "not browser"` leaves them out)."""
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Server:
    """`streamlit run Home.py` (or another script) on a free port of 127.0.0.1."""

    def __init__(self, settings, script: str = "Home.py") -> None:
        self.settings, self.script = settings, script
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        env = {
            **os.environ,
            "OFFSHOOT_HOME": str(self.settings.home),
            "OFFSHOOT_DATA_DIR": str(self.settings.data_folder),
            "OFFSHOOT_NUM_THREADS": "1",
            "OFFSHOOT_WORKER_IDLE_S": "60",
            "OFFSHOOT_PRESET_IMAGE_SIZE": "32",
        }
        command = [sys.executable, "-m", "streamlit", "run", self.script, "--server.port", str(self.port)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=quiet, stdout=quiet, stderr=quiet)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def server(settings, manager):
    manager.initialize_model("tiny", random_seed=0, name="tiny")
    running = Server(settings)
    yield running
    running.stop()


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(45_000)
        yield opened
        browser.close()


def test_three_clicks_lead_to_a_comparison(server, page, manager: ModelManager):
    page.goto(server.url)
    page.get_by_role("button", name="Compress this model").click()
    page.get_by_role("button", name="Choose").first.click()
    page.get_by_role("button", name="Run").click()
    page.get_by_role("heading", name="Compressing").wait_for()
    page.reload()
    page.get_by_role("heading", name="Compressing").wait_for()
    page.get_by_role("heading", name="Compare", exact=True).wait_for(timeout=120_000)
    assert "models=" in page.url
    page.get_by_role("button", name="Make current").wait_for()
    made = manager.list_models(limit=1)[0]
    assert made.kind == "retrained" and made.facts["parameters"] < manager.list_models()[-1].facts["parameters"]


def test_the_server_dies_in_mid_job_and_nothing_is_lost(server, page, manager: ModelManager):
    tiny = manager.current()
    assert tiny is not None
    spec = {"image_size": 32, "n_epochs": 200, "steps_per_epoch": 20, "warmup_epochs": 0, "val_steps": 4, "num_workers": 0}
    job = manager.retrain_model(tiny.id, spec)
    page.goto(f"{server.url}/Retrain?job={job.id}")
    page.get_by_role("button", name="Checkpoint now").wait_for()
    server.stop()
    before = len(manager.series(job.id, "loss")[0])
    server.start()
    page.goto(f"{server.url}/Retrain?job={job.id}")
    cancel = page.get_by_role("main").get_by_role("button", name="Cancel").first
    cancel.wait_for()
    assert len(manager.series(job.id, "loss")[0]) > before
    cancel.click()
    end = time.monotonic() + 20
    while manager.job(job.id).state != "cancelled" and time.monotonic() < end:
        time.sleep(0.1)
    assert manager.job(job.id).state == "cancelled" and len(manager.list_models()) == 1


def choose(page, label: str, option: str) -> None:
    """Picks an option of a select box."""
    box = page.get_by_test_id("stSelectbox").filter(has=page.get_by_text(label, exact=True))
    field = box.get_by_role("combobox")
    field.wait_for()
    if field.input_value() != option:
        field.fill(option)  # a click at the page's edge scrolls, which closes the list again
        page.get_by_role("option", name=option, exact=True).click()


def fill(page, label: str, value: str) -> None:
    """Types a number."""
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")


def prune_so(page) -> None:
    """Runs the form without retraining, up to the comparison."""
    page.get_by_text("Then retrain and compare", exact=True).click()
    page.get_by_text("steps of retraining in total").wait_for(state="hidden")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("heading", name="Compare", exact=True).wait_for(timeout=120_000)


def test_every_method_goes_from_the_form_to_the_store(server, page, manager: ModelManager):
    tiny = manager.current()
    assert tiny is not None
    for method in METHOD_TITLES:
        page.goto(f"{server.url}/Prune?model={tiny.id}")
        choose(page, "method", method)
        page.get_by_text(METHOD_TITLES[method]).wait_for()
        if method == "two_four":
            page.get_by_text("skip unfit", exact=True).click()
        prune_so(page)
        made = manager.list_models(limit=1)[0]
        assert made.kind == "pruned" and made.parent_id == tiny.id and made.spec["method"] == method
        assert manager.get_model_metrics(made.id)["psnr_db"] is not None


def test_every_score_goes_from_the_form_to_the_store(server, page, manager: ModelManager):
    tiny = manager.current()
    assert tiny is not None
    made = {}
    for score in get_args(UnitScore):
        page.goto(f"{server.url}/Prune?model={tiny.id}")
        choose(page, "method", "structured")
        page.get_by_text(METHOD_TITLES["structured"]).wait_for()
        if score != "obs":
            choose(page, "score", score)
        prune_so(page)
        made[score] = manager.list_models(limit=1)[0]
        assert made[score].parent_id == tiny.id and made[score].spec["score"] == score and made[score].spec["compensate"]
    # LAMP ranks the units of one site as their L2 norm does.
    weights = {score: row.weights_digest for score, row in made.items()}
    assert weights.pop("lamp") == weights["l2"] and len(set(weights.values())) == len(weights)


def test_a_schedule_goes_from_the_form_to_the_store(server, page, manager: ModelManager):
    tiny = manager.current()
    assert tiny is not None
    page.goto(f"{server.url}/Prune?model={tiny.id}")
    page.get_by_role("button", name="Run", exact=True).wait_for()
    choose(page, "schedule", "iterative")
    fill(page, "rounds", "2")
    fill(page, "steps of retraining in total", "4")
    page.get_by_text("Round 2: prune at 0.293, then 2 steps").wait_for()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("heading", name="Compare", exact=True).wait_for(timeout=180_000)
    made = manager.list_models(limit=4)[::-1]
    assert [row.kind for row in made] == ["pruned", "retrained"] * 2
    assert [row.parent_id for row in made] == [tiny.id, *[row.id for row in made[:3]]]
    assert len({row.facts["parameters"] for row in made}) == 2, "each round cuts"


def test_a_target_goes_from_the_measurements_to_what_was_achieved(server, page, manager: ModelManager):
    tiny = manager.current()
    assert tiny is not None
    manager.wait(manager.evaluate_model(tiny.id, {"image_size": 32, "num_images": 24}).id)
    page.goto(f"{server.url}/Prune?model={tiny.id}")
    choose(page, "method", "structured")
    choose(page, "score", "l2")
    choose(page, "part", "decoder")
    page.get_by_text("A target instead of rates").click()
    page.get_by_role("button", name="Measure sensitivity").click()
    page.get_by_role("button", name="Measure sensitivity again").wait_for(timeout=120_000)
    assert manager.sensitivity(tiny.id).knobs and all(n.startswith("decoder") for n in manager.sensitivity(tiny.id).knobs)
    page.get_by_text("lost by pruning one site alone").wait_for()
    page.get_by_role("button", name="Profile latency").click()
    page.get_by_role("button", name="Profile latency again").wait_for(timeout=180_000)
    page.get_by_text("mean error over").wait_for()
    tiles = [tile.inner_text() for tile in page.get_by_test_id("stMetric").all()]
    assert any(" ms" in text and "%" in text for text in tiles) and any(" dB" in text for text in tiles), tiles
    page.get_by_role("button", name="Prune so and measure").click()
    page.get_by_text("Predicted → achieved").wait_for(timeout=120_000)
    page.wait_for_function("!/chain=|from=|stay=/.test(location.search)", timeout=120_000)
    assert "Prune" in page.title()
    (found,) = manager.outcomes(tiny.id)
    assert found.model.spec["score"] == "l2" and found.model.spec["site_rates"]
    assert found.achieved["parameters"] == found.predicted["parameters"]
    assert found.achieved["decode_ms"][1] > 0 and "psnr_db" in found.achieved
