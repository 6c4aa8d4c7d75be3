"""Every page on a small store through Streamlit's own test driver, and that no page loads torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["Home.py", *sorted(f"pages/{p.name}" for p in (ROOT / "pages").glob("*.py"))]

DRIVE = """
import sys
from streamlit.testing.v1 import AppTest
page, query = sys.argv[1], dict(part.split("=") for part in sys.argv[2:])
app = AppTest.from_file("Home.py", default_timeout=60)
if page != "Home.py":
    app.switch_page(page)
for key, value in query.items():
    app.query_params[key] = value
app.run()
assert not app.exception, app.exception[0].stack_trace
print("ERRORS", [box.value for box in app.error])
print("TITLES", [title.value for title in app.title])
print("BUTTONS", [button.label for button in app.button])
print("TORCH", "torch" in sys.modules)
"""

ROUNDS = """
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("Home.py", default_timeout=60)
app.switch_page("pages/2_Prune.py").run()
def labels():
    assert not app.exception, app.exception[0].stack_trace
    return {box.label for box in (*app.selectbox, *app.number_input)}
def choose(label, value):
    next(box for box in app.selectbox if box.label == label).set_value(value).run()
assert "schedule" in labels() and "rounds" not in labels()
choose("schedule", "linear")
assert "rounds" in labels(), labels()
assert any("Round 4: prune at 0.5, then 250 steps" in c.value for c in app.caption), [c.value for c in app.caption]
choose("schedule", "iterative")
next(box for box in app.number_input if box.label == "rounds").set_value(9).run()
assert "9 rounds are too many" in app.error[0].value and not any(b.label == "Run" for b in app.button)
next(box for box in app.number_input if box.label == "rounds").set_value(2).run()
assert not app.error
choose("method", "structured")
assert {"score", "calibration size (px)"} <= labels()
choose("method", "two_four")
assert not labels() & {"schedule", "rounds", "rate"}
choose("method", "l2_structured")
choose("schedule", "cubic")
next(box for box in app.number_input if box.label == "rounds").set_value(2).run()
next(button for button in app.button if button.label == "Run").click().run()
labels()
print("CHAIN", len("".join(app.query_params["chain"]).split(",")))
"""


def drive(settings, page: str, *query: str, script: str = DRIVE) -> str:
    env = {
        **os.environ,
        "OFFSHOOT_HOME": str(settings.home),
        "OFFSHOOT_DATA_DIR": str(settings.data_folder),
        "OFFSHOOT_NUM_THREADS": "1",
        "OFFSHOOT_WORKER_IDLE_S": "60",
    }
    done = subprocess.run([sys.executable, "-c", script, page, *query], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def family(manager):
    """A baseline and its pruned, evaluated offspring."""
    tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
    job = manager.wait(manager.prune_model(tiny.id, {"rate": 0.5}).id, 60)
    for ref in (tiny.id, job.model_id):
        manager.wait(manager.evaluate_model(ref, {"image_size": 32, "num_images": 16}).id, 60)
    manager.wait(manager.benchmark_models([tiny.id, job.model_id], {"image_size": 32, "repeats": 3}).id, 60)
    return tiny.id, job.model_id


def test_every_page_stands_on_its_own_and_loads_no_torch(settings, family):
    baseline, pruned = family
    for page in PAGES:
        query = (f"models={baseline},{pruned}",) if "Compare" in page else (f"model={pruned}",)
        said = drive(settings, page, *query)
        assert "ERRORS []" in said and "TORCH False" in said, (page, said)


def test_a_link_to_an_unknown_model_says_so(settings, family):
    assert "No model" in drive(settings, "pages/1_Baseline.py", "model=m_ffffffffffff")


def test_the_prune_page_offers_targets_once_the_model_is_measured(settings, manager):
    tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
    how = {"method": "structured", "score": "l2", "compensate": False, "kinds": ["mid"]}
    job = manager.measure_sensitivity(tiny.id, {"prune": how, "rates": [0.5], "image_size": 32, "num_images": 4})
    manager.wait(job.id, 60)
    said = drive(settings, "pages/2_Prune.py", f"model={tiny.id}", f"chain={job.id}")
    assert "ERRORS []" in said and "TORCH False" in said and "Prune so, retrain and compare" in said


def test_a_schedule_is_chosen_seen_and_run_from_the_form(settings, manager):
    tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
    assert "CHAIN 7" in drive(settings, "pages/2_Prune.py", script=ROUNDS)
    jobs = [job for job in reversed(manager.jobs()) if job.operation in ("prune", "retrain")]
    assert [job.name.split("_")[1] for job in jobs] == [
        "l2structured-cubic-1of2", "retrained-cubic-1of2", "l2structured-cubic-2of2", "retrained-cubic-2of2"
    ]  # fmt: skip
    assert [job.spec.get("apply") for job in jobs] == ["mask", None, "cut", None] and jobs[0].parent_model_id == tiny.id
    for job in reversed(manager.jobs(states=("queued", "blocked", "running", "starting"))):
        manager.control(job.id, "cancel")
