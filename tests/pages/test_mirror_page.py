"""The mirror on Home: how many runs wait, and a mode that is chosen there."""

from __future__ import annotations

import json

from core.mirror import choice
from tests.pages.driving import drive

CHOOSE = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("Home.py", default_timeout=60)
def captions():
    assert not app.exception, app.exception[0].stack_trace
    return [c.value for c in app.caption]
def box(boxes, key):
    return next(b for b in boxes if (b.key or "").startswith(key))
app.run()
assert "W&B: 1 run waits for a key." in captions(), captions()
assert not app.error
mode = box(app.selectbox, "mirror-mode")
assert mode.value == "auto" and not mode.disabled
mode.set_value("online").run()
assert "no W&B key" in app.error[0].value, app.error
box(app.text_input, "mirror-project").set_value("a/b").run()
assert any("refuses the project name" in e.value for e in app.error), app.error
box(app.text_input, "mirror-project").set_value("shared").run()
box(app.selectbox, "mirror-mode").set_value("off").run()
assert "The W&B mirror is off." in captions(), captions()
print("TORCH", "torch" in sys.modules, "wandb" in sys.modules)
"""


def test_home_says_what_waits_and_takes_a_mode(settings, manager, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "OFFSHOOT_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    manager.initialize_model("tiny", random_seed=0, name="tiny")
    assert "TORCH False False" in drive(settings, "x", script=CHOOSE)
    assert json.loads((settings.home / choice.FILE_NAME).read_text()) == {"mirror": "off", "wandb_project": "shared"}
    assert manager.mirror_view().mode == "off" and not manager.ensure_mirror()


VIEWS = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("Home.py", default_timeout=90)
app.switch_page("pages/4_Compare.py")
app.query_params["models"] = sys.argv[2]
app.session_state["wandb-views"] = True
app.run()
assert not app.exception, app.exception[0].stack_trace
next(button for button in app.button if button.key == "wandb-views-make").click().run()
assert not app.exception and not app.error, app.error
said = " ".join(text.value for text in app.markdown)
assert "Not saved to W&B" in said and "view-report" in said and "view-workspace" in said, said
print("WHERE", "torch" in sys.modules, "wandb" in sys.modules)
"""


def test_a_comparison_becomes_files_for_wandb_without_a_key(settings, manager, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "OFFSHOOT_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    row = manager.initialize_model("tiny", random_seed=0, name="tiny")
    assert "WHERE False False" in drive(settings, "x", row.id, script=VIEWS)
    assert {path.name.split("-")[1].removesuffix(".json") for path in (settings.home / "mirror" / "views").iterdir()} == {
        "report", "workspace",
    }  # fmt: skip
