"""The Retrain page with a real worker: steer a training, look at its checkpoints, make a model of one, go on with other settings."""

from __future__ import annotations

from tests.pages.driving import drive

FIELDS = {
    "image_size": 32, "batch_size": 2, "n_epochs": 5000, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-3, "val_steps": 4,
    "num_save_images": 1, "eval_interval": 50,
}  # fmt: skip

STEER = """
import sys, time
from streamlit.testing.v1 import AppTest
from core.model_manager import ModelManager
manager = ModelManager()
job = manager.job(sys.argv[1])
app = AppTest.from_file("Home.py", default_timeout=60)
app.switch_page("pages/3_Retrain.py")
app.query_params["job"] = job.id
app.query_params["model"] = job.parent_model_id
app.run()
def button(label):
    assert not app.exception, app.exception[0].stack_trace
    return next((b for b in app.button if b.label == label), None)
def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, manager.job(job.id)
        time.sleep(0.1)
until(lambda: manager.job(job.id).state == "running" and manager.steps_done(job.id) > 0)
app.run()
button("Pause").click().run()
until(lambda: manager.job(job.id).state == "paused" and manager.job(job.id).pid is None)
app.run()
before = manager.steps_done(job.id)
next(n for n in app.number_input if n.label == "steps").set_value(3).run()
button("Run these, then pause").click().run()
until(lambda: manager.job(job.id).state == "paused" and manager.job(job.id).pid is None and manager.steps_done(job.id) > before)
print("RAN", manager.steps_done(job.id) - before)
app.run()
assert any("Kept: the 2 newest checkpoints" in c.value for c in app.caption)
assert len(app.dataframe) >= 1
next(c for c in app.checkbox if c.label == "evaluate it too").set_value(False).run()
button("Make a model of it").click().run()
branch = next(j for j in manager.jobs() if j.operation == "branch")
made = manager.wait(branch.id, 60)
print("BRANCH", manager.get_model(made.model_id).kind)
app.run()
button("Go on with other settings").click().run()
assert any("Train on" in box.value for box in app.info), [box.value for box in app.info]
next(n for n in app.number_input if n.label == "init lr").set_value(5e-4).run()
button("Train on").click().run()
onward = next(j for j in manager.jobs() if j.operation == "retrain" and j.id != job.id)
print("ONWARD", onward.spec["init_lr"], onward.spec["seed"], manager.job(job.id).state, len(app.error))
manager.control(onward.id, "cancel")
"""


def test_a_training_is_steered_branched_and_continued_from_the_page(settings, manager):
    tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
    job = manager.retrain_model(tiny.id, FIELDS)
    said = drive(settings, job.id, script=STEER)
    assert "RAN 3" in said and "BRANCH retrained" in said and "ONWARD 0.0005 1 paused 0" in said


IMAGES = """
import sys
from streamlit.testing.v1 import AppTest
from core.model_manager import ModelManager
manager = ModelManager()
job = manager.job(sys.argv[1])
app = AppTest.from_file("Home.py", default_timeout=60)
app.switch_page("pages/3_Retrain.py")
app.query_params["model"] = job.model_id
app.query_params["job"] = job.id
table = manager.image_losses(job.id)
worst = [row["row"] for row in table.rows("worst", limit=2)]
app.query_params["without"] = worst[0]
app.query_params["weights"] = worst[1] + ":4"
app.run()
assert not app.exception, app.exception[0].stack_trace
next(b for b in app.button if b.label == "Retrain").click().run()
assert not app.exception and not app.error, (app.exception, [e.value for e in app.error])
made = next(j for j in manager.jobs() if j.operation == "retrain" and j.id != job.id)
assert list(made.spec["data"]["deny_rows"]) == [worst[0]] and made.spec["row_weights"] == [[worst[1], 4.0]], made.spec
print("SLICES", [row["slice"] for row in manager.slice_table(job.id)])
app = AppTest.from_string(sys.argv[2], default_timeout=60)
app.query_params["job"] = job.id
app.run()
def click(start):
    assert not app.exception, app.exception[0].stack_trace
    next(b for b in app.button if b.label.startswith(start)).click().run()
click("Draw 2 so often")
assert "".join(app.query_params["weights"]) == ",".join(f"{row}:4" for row in sorted(worst)), app.query_params
click("Leave 2 out")
assert "weights" not in app.query_params and "".join(app.query_params["without"]) == ",".join(sorted(worst)), app.query_params
click("Take all back")
app.text_input(key="images-tag").set_value("odd").run()
click("Tag 2")
assert manager.training_tags(job.spec) == {row: ("odd",) for row in worst}
click("Untag 2")
assert manager.training_tags(job.spec) == {}
assert "without" not in app.query_params and not app.exception
manager.control(made.id, "cancel")
before = len(manager.jobs())
app.multiselect(key="reset-" + job.model_id).set_value(["decoder.conv_in"]).run()
app.text_input(key="reset-units-" + job.model_id).set_value("0, 99999").run()
click("Reset")
assert "units" in app.error[0].value and len(manager.jobs()) == before, [e.value for e in app.error]
app.text_input(key="reset-units-" + job.model_id).set_value("0, 2").run()
click("Reset")
reset = next(j for j in manager.jobs() if j.operation == "reset")
assert reset.spec["units"] == [0, 2] and reset.spec["layers"] == ["decoder.conv_in"], reset.spec
"""


LISTING = """
import streamlit as st
from core.model_manager import ModelManager
from pages.ui import images, training
from pages.ui.boot import guarded
manager = ModelManager()
rows, spec, _ = images._fates(manager, manager.job(st.query_params["job"]))
st.image(manager.training_frame(spec, rows[0]["row"]))
chosen = [row["row"] for row in rows[:2]]
images._actions(chosen)
images._tagging(manager, spec, chosen)
with guarded():
    training._reset(manager, manager.get_model(manager.job(st.query_params["job"]).model_id))
"""


def test_images_are_left_out_and_weighted_from_the_page(settings, manager):
    tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
    job = manager.wait(manager.retrain_model(tiny.id, {**FIELDS, "n_epochs": 1, "eval_interval": 1}).id, 90)
    said = drive(settings, job.id, LISTING, script=IMAGES)
    assert "SLICES ['high contrast', 'low contrast', 'middle contrast']" in said
