"""The Lineage page: searching, focus and forest, colour and size, deleting with its undoing, writing on models."""

from __future__ import annotations

import pytest

import store as st
from tests.pages.driving import drive
from tests.pages.test_pages import LOOK

START = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("Home.py", default_timeout=60)
app.switch_page("pages/5_Lineage.py")
for part in sys.argv[2:]:
    key, value = part.split("=", 1)
    app.query_params[key] = value
def run():
    app.run()
    assert not app.exception, app.exception[0].stack_trace
def captions():
    return " | ".join(c.value for c in app.caption)
def press(key):
    next(b for b in app.button if b.key == key).click()
    run()
run()
"""

SEARCH = (
    START
    + """
def search(text):
    next(t for t in app.text_input if t.key == "search").set_value(text); run()
search("psnr_db > 1 and kind = pruned")
assert "1 models fit the search" in captions(), captions()
search("psnr > 1")
assert "no figure" in app.error[0].value and "psnr_db" in app.error[0].value
search("")
assert not app.error
for key, value in (("colour", "psnr_db"), ("size", "decode_ms"), ("colour", "foreground_psnr_db"), ("size", "peak_memory_bytes")):
    next(s for s in app.selectbox if s.key == key).set_value(value); run()
assert "2 of 3 models are drawn" in captions(), captions()
app.session_state["view"] = "forest"; run()
assert "3 of 3 models are drawn" in captions(), captions()
print("TORCH", "torch" in sys.modules)
"""
)

KEEP = (
    START
    + """
next(t for t in app.text_input if t.label == "Add a tag").set_value("small"); run()
next(t for t in app.text_area if t.label == "Note").set_value("seen"); run()
next(t for t in app.text_input if t.label == "Point an alias here").set_value("best"); run()
next(t for t in app.text_input if t.label == "Name").set_value("renamed"); run()
assert not any(b.key == "verify" for b in app.button), "what is closed is not made"
app.session_state["card-verify"] = True; run()
press("verify")
assert any("as it was stored" in s.value for s in app.success), captions()
press("reproduce")
print("DONE")
"""
)

CLEAN = (
    START
    + """
app.session_state["card-deleted"] = True; run()
assert "1 can be restored" in captions(), captions()
press("restore-" + sys.argv[1].split("/")[-1])
assert "None is left that could be restored" in captions(), "it stays open"
print("DONE")
"""
)

GONE = (
    START
    + """
app.session_state["card-deleted"] = True; run()
press("clean-up")
assert "Cleaned: 1 models; before" in captions(), captions()
print("DONE")
"""
)


CARD = (
    START
    + """
for key in ("figures", "changes", "pictures", "log", "copies"):
    app.session_state["card-" + key] = True
run()
tables = [frame.value for frame in app.dataframe]
figures = next(t for t in tables if "against baseline" in t)
assert {"Parameters", "Encode MACs", "File", "PSNR", "MSE (8-bit)", "Decode", "Decoded images a second"} <= set(figures["figure"]), figures
widths = next(t for t in tables if "kept" in t)
assert all(widths["this"] < widths["parent"])
said = captions()
assert "of memory at most" in said and "Originals above" in said and "offline run in mirror" in said, said
assert any("removed 0.5" in code.value for code in app.code), "the log"
assert len(app.image) >= 8, len(app.image)
print("DONE")
"""
)


def test_search_colour_size_and_the_whole_forest(settings, family, manager):
    manager.initialize_model("tiny", random_seed=1, name="apart")
    assert "TORCH False" in drive(settings, "x", f"model={family[1]}", script=SEARCH)


def test_words_verification_and_a_rerun_from_the_page(settings, family, manager):
    assert "DONE" in drive(settings, "x", f"model={family[1]}", script=KEEP)
    row = manager.get_model("best")
    assert (row.id, row.name, row.note, row.tags) == (family[1], "renamed", "seen", ("small",))
    job = manager.wait(manager.reproduction_job(row.id).id, 60)
    assert job.result["identical"] is True
    assert "ERRORS []" in drive(settings, "pages/5_Lineage.py", f"model={row.id}", steps=LOOK)


def test_a_deletion_is_undone_and_made_final_on_the_page(settings, family, manager):
    manager.delete(family[1])
    assert "DONE" in drive(settings, f"x/{family[1]}", script=CLEAN)
    assert manager.get_model(family[1]).deleted is None
    manager.delete(family[1])
    assert "DONE" in drive(settings, "x", script=GONE)
    assert manager.deleted_models() == [] and manager.verify() == []


def test_a_card_has_all_figures_and_what_changed(settings, family, manager):
    st.set_mirrored(
        manager.store, "wandb-offline:mirror", manager.making_job(family[1]).id, "wandb/offline-run-1", {"state": "sent"}
    )
    assert "DONE" in drive(settings, "x", f"model={family[1]}", script=CARD)


@pytest.mark.parametrize("query", ["colour=psnr_db", "view=forest", "search=kind = pruned", "size=nonsense"])
def test_the_choice_stands_in_the_url(settings, family, query):
    said = drive(settings, "x", f"model={family[1]}", query, script=START + "print('ERRORS', list(app.error))")
    assert "ERRORS []" in said
