"""Every page on a small store through Streamlit's own test driver, and that no page loads torch: outside pytest's process, which does."""

from __future__ import annotations

from tests.pages.driving import ROOT, drive

PAGES = ["Home.py", *sorted(f"pages/{p.name}" for p in (ROOT / "pages").glob("*.py"))]

LOOK = """
fine()
print("ERRORS", [box.value for box in app.error])
print("TITLES", [title.value for title in app.title])
print("BUTTONS", [button.label for button in app.button])
print("TORCH", "torch" in sys.modules)
"""

LOCKS = """
lock = next(box for box in app.multiselect if box.label == "Keep whole")
assert {"mid", "encoder.mid", "decoder.mid"} < set(lock.options), lock.options
print("FREE")
lock.set_value(["mid"]).run()
print("LOCKED", [box.value for box in app.error])
"""

EVERY = """
import sys
from streamlit.testing.v1 import AppTest
for given in sys.argv[2:]:
    page, key, value = given.split("=")
    app = AppTest.from_file("Home.py", default_timeout=60)
    if page != "Home.py":
        app.switch_page(page)
    app.query_params[key] = value
    app.run()
    assert not app.exception, (page, app.exception[0].stack_trace)
    print(page, "ERRORS", [box.value for box in app.error], "TORCH", "torch" in sys.modules)
"""

ROUNDS = """
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
button("Run").click().run()
labels()
print("CHAIN", len("".join(app.query_params["chain"]).split(",")))
"""


def test_every_page_stands_on_its_own_and_loads_no_torch(settings, family):
    baseline, pruned = family
    queries = [f"{page}=" + (f"models={baseline},{pruned}" if "Compare" in page else f"model={pruned}") for page in PAGES]
    said = drive(settings, "", *queries, script=EVERY)
    assert said.splitlines() == [f"{page} ERRORS [] TORCH False" for page in PAGES]


def test_a_link_to_an_unknown_model_says_so(settings, family):
    assert "No model" in drive(settings, "pages/1_Baseline.py", "model=m_ffffffffffff", steps=LOOK)


def test_the_prune_page_offers_targets_once_the_model_is_measured(settings, manager):
    tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
    how = {"method": "structured", "score": "l2", "compensate": False, "kinds": ["mid"]}
    job = manager.measure_sensitivity(tiny.id, {"prune": how, "rates": [0.5], "image_size": 32, "num_images": 4})
    manager.wait(job.id, 60)
    said = drive(settings, "pages/2_Prune.py", f"model={tiny.id}", f"chain={job.id}", steps=LOOK + LOCKS)
    assert "ERRORS []" in said and "TORCH False" in said and "Prune so, retrain and compare" in said
    assert "FREE" in said and "cannot be reached" in said.partition("LOCKED")[2]


PLAN = """
next(t for t in app.toggle if t.label == "Advanced settings").set_value(True).run()
asked = {"rate", "part", "kinds", "round to", "site rates"}
def shown():
    boxes = (*fine().selectbox, *app.slider, *app.multiselect, *app.number_input, *app.text_input)
    return asked & {box.label for box in boxes}
assert shown() == asked, shown()
text("plan").set_value("m_ffffffffff").run()
assert shown() == set() and any("No model" in box.value for box in app.error)
text("plan").set_value(query["plan"]).run()
assert not app.error and shown() == set()
print("PARAMETERS", next(m.delta for m in app.metric if m.label == "Parameters" and m.delta))
next(t for t in app.toggle if t.label == "Then retrain and compare").set_value(False).run()
button("Run").click().run()
fine()
"""


def test_the_units_of_another_pruning_are_kept_again_from_the_form(settings, family, manager):
    baseline, pruned = family
    said = drive(settings, "pages/2_Prune.py", f"model={baseline}", f"plan={pruned}", steps=PLAN)
    assert "PARAMETERS -" in said
    job = next(job for job in manager.jobs() if job.operation == "prune" and job.state != "done" or job.spec.get("plan"))
    assert job.spec["plan"] == pruned and job.parent_model_id == baseline
    made = manager.get_model(manager.wait(job.id, 60).model_id)
    assert made.facts["parameters"] == manager.get_model(pruned).facts["parameters"]


def test_a_schedule_is_chosen_seen_and_run_from_the_form(settings, manager):
    tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
    assert "CHAIN 7" in drive(settings, "pages/2_Prune.py", steps=ROUNDS)
    jobs = [job for job in reversed(manager.jobs()) if job.operation in ("prune", "retrain")]
    assert [job.name.split("_")[1] for job in jobs] == [
        "l2structured-cubic-1of2", "retrained-cubic-1of2", "l2structured-cubic-2of2", "retrained-cubic-2of2"
    ]  # fmt: skip
    assert [job.spec.get("apply") for job in jobs] == ["mask", None, "cut", None] and jobs[0].parent_model_id == tiny.id
    for job in reversed(manager.jobs(states=("queued", "blocked", "running", "starting"))):
        manager.control(job.id, "cancel")


CHOICE = """
refs = query["models"].split(",")
heads = [h.value for h in app.subheader]
assert heads[:4] == ["Is the difference real?", "Cost", "Quality against cost", "Ranking"], heads
assert any("On the Pareto front" in c.value for c in app.caption)
tables = [table.value for table in app.dataframe]
real = next(t for t in tables if any("p " in str(v) for v in t.iloc[:, -1]))
assert real.iloc[0, 0] == "PSNR" and "[" in real.iloc[0, 1] and "paired" not in real.iloc[0, 1]
box("Across").set_value("parameters").run()
box("Against").set_value(refs[1]).run()
assert not app.exception, app.exception[0].stack_trace
turned = next(t.value for t in app.dataframe if any("p " in str(v) for v in t.value.iloc[:, 1]))
assert "p " in turned.iloc[1, 1] and turned.iloc[1, 2] == "" and "difference" in turned.iloc[1, 0], turned
def ranked():
    return [t.value for t in app.dataframe if "score" in t.value.columns][0]
for slider in app.slider:
    if slider.label in ("Parameters", "Decode", "PSNR", "Foreground PSNR"):
        slider.set_value(1.0 if slider.label == "Parameters" else 0.0)
app.run()
assert list(ranked().score) == [1.0, 0.0]
print("FIRST", ranked().model[0])
for slider in app.slider:
    slider.set_value(0.5)
app.run()
next(t for t in app.toggle if t.label == "Radar").set_value(True).run()
assert not app.exception, app.exception[0].stack_trace
"""


def test_the_choice_is_made_on_the_page(settings, family, manager):
    said = drive(settings, "pages/4_Compare.py", f"models={','.join(family)}", steps=CHOICE)
    assert f"FIRST {manager.get_model(family[1]).name}" in said, "the pruned model has fewer parameters"


SHIPPING = """
refs = query["models"].split(",")
labels = {b.label for b in app.get("download_button")}
assert {"HTML", "PDF", "Markdown", "CSV", "JSON", "All of them"} <= labels, labels
assert any("Sorted by the most that any model loses" in c.value for c in app.caption)
box("format").set_value("onnx").run()
assert {"dtype", "quantize", "part"} <= {b.label for b in fine().selectbox}
box("format").set_value("offshoot").run()
assert not {"export-quantize", "export-part"} & {b.key for b in fine().selectbox}, "what does not apply is not there"
box("format").set_value("diffusers").run()
button("export-run").click().run()
assert any("whole stages" in e.value for e in fine().error), [e.value for e in app.error]
box("Left").set_value(refs[0]).run()
next(s for s in fine().slider if s.label == "Divide at").set_value(20).run()
next(s for s in fine().select_slider if s.label == "Zoom").set_value(4).run()
assert "Across" in {s.label for s in fine().slider}
box("format").set_value("offshoot").run()
box("Model to export").set_value(refs[1]).run()
button("export-run").click().run()
print("QUEUED", not fine().error)
"""


def test_reports_exports_and_a_closer_look_are_on_the_page(settings, family, manager):
    said = drive(settings, "pages/4_Compare.py", f"models={','.join(family)}", "open=export-open", steps=SHIPPING)
    assert "QUEUED True" in said
    job = next(job for job in manager.jobs() if job.operation == "export")
    assert manager.wait(job.id, 120).result["good"] and job.parent_model_id == family[1]
    again = drive(settings, "pages/4_Compare.py", f"models={','.join(family)}", steps=LOOK)
    assert "ERRORS []" in again and "TORCH False" in again
