"""Pages driven by Streamlit's own test driver, each in a process of its own, as a page may import no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import sys
from streamlit.testing.v1 import AppTest
page, query = sys.argv[1], dict(part.split("=") for part in sys.argv[2:])
app = AppTest.from_file("Home.py", default_timeout=60)
if page != "Home.py":
    app.switch_page(page)
for key, value in query.items():
    if key in ("open", "folder", "ids"):
        continue
    app.query_params[key] = value
for key in query.get("open", "").split(","):
    if key:
        app.session_state[key] = True
app.run()
def fine():
    assert not app.exception, app.exception[0].stack_trace
    return app
def box(label, which=0):
    return [b for b in fine().selectbox if label in (b.label, b.key)][which]
def text(label, which=0):
    return [b for b in fine().text_input if b.label == label][which]
def button(label):
    return next(b for b in fine().button if label in (b.label, b.key))
def table(column):
    return next(t.value for t in fine().dataframe if column in t.value.columns)
"""
"""Opens a page with its query (`open=KEY,KEY`: expanders that are open from the start), and names what scripts look for."""


def drive(settings, page: str, *query: str, steps: str = "", script: str = "") -> str:
    """Runs `steps` on a page that was opened by `HEAD`, or a whole `script`; returns what it prints."""
    env = {
        **os.environ,
        "OFFSHOOT_HOME": str(settings.home),
        "OFFSHOOT_DATA_DIR": str(settings.data_folder),
        "OFFSHOOT_NUM_THREADS": "1",
        "OFFSHOOT_WORKER_IDLE_S": "60",
    }
    done = subprocess.run(
        [sys.executable, "-c", script or HEAD + steps, page, *query], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
