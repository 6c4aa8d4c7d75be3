"""The Retrain page with a real worker: steer a training, look at its checkpoints, make a model of one, go on with other settings."""

from __future__ import annotations

from tests.pages.test_pages import drive

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
