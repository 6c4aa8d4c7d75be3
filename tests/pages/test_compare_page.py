"""What the Compare page says of models on other images, of layers and of two models unit by unit, through Streamlit's test driver."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import store as st
from core.settings import Settings
from tests.conftest import stop_workers
from tests.core.in_process import InProcess
from tests.pages.test_pages import drive

SIZE = {"image_size": 32}


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    """A store whose figures were measured in this process, so that the page starts with them."""
    home = tmp_path_factory.mktemp("compare") / "home"
    made = InProcess(Settings(home=home, data_dir=data_dir, device="cpu", num_threads=1))
    yield made
    made.store.close()
    stop_workers(home)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(where / f"{number}.png")
    return where


@pytest.fixture(scope="module")
def pair(bench, folder):
    base = bench.add(name="base").id
    pruned = bench.run("prune", base, rate=0.5).model_id
    st.set_alias(bench.store, "current", base)
    for ref in (base, pruned):
        bench.run("evaluate", ref, **SIZE, num_images=20, num_save_images=2)
        bench.run("testrun", ref, data={"kind": "folder", "location": str(folder)}, **SIZE, num_save_images=2)
    return base, pruned


RUNS = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("Home.py", default_timeout=60)
app.switch_page("pages/4_Compare.py")
app.query_params["models"] = sys.argv[2].split("=")[1]
app.run()
def fine():
    assert not app.exception, app.exception[0].stack_trace
    return app
def box(label, which=0):
    return [b for b in fine().selectbox if b.label == label][which]
def text(label, which=0):
    return [b for b in fine().text_input if b.label == label][which]
beside = next(t.value for t in app.dataframe if "images" in t.value.columns and "model" in t.value.columns)
assert list(beside.images.str.split(":").str[0]) == ["Pinned", "Pinned", "10 images of folder", "10 images of folder"], beside
assert beside.PSNR[0] != beside.PSNR[2] and "[" in beside.PSNR[2] and beside["Foreground PSNR"][2] == "–"
first = app.dataframe[0].value
run = next(o for o in box("Quality is of").options if o.startswith("10 images"))
box("Quality is of").select(run).run()
assert "on" in fine().query_params and any("not of the pinned images" in i.value for i in app.info)
second = app.dataframe[0].value
of = lambda table, name: table[table.iloc[:, 0] == name].iloc[0, 1]
assert of(first, "PSNR") != of(second, "PSNR") and of(first, "Parameters") == of(second, "Parameters")
assert "Foreground PSNR" not in set(second.iloc[:, 0])
text("path").input("/no/such/folder").run()
next(b for b in fine().button if b.label == "Run").click().run()
assert any("no folder" in e.value for e in fine().error), [e.value for e in app.error]
text("path").input(sys.argv[3].split("=")[1]).run()
next(b for b in fine().button if b.label == "Run").click().run()
assert not fine().error, [e.value for e in app.error]
text("path", 1).input(sys.argv[3].split("=")[1]).run()
next(b for b in fine().button if b.label == "Reconstruct all").click().run()
assert not fine().error, [e.value for e in app.error]
print("QUEUED")
"""


def test_other_images_stand_beside_the_pinned_ones(bench, pair, folder):
    assert "QUEUED" in drive(bench.settings, "", f"models={','.join(pair)}", f"folder={folder}", script=RUNS)
    asked = st.jobs.list_jobs(bench.store, None, 3)
    assert [job.operation for job in asked] == ["infer", "testrun", "testrun"]
    assert {job.parent_model_id for job in asked[1:]} == set(pair) and asked[0].parent_model_id == pair[1]
    assert asked[1].spec["data"]["location"] == str(folder)


INSIDE = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("Home.py", default_timeout=60)
app.switch_page("pages/4_Compare.py")
app.query_params["models"] = sys.argv[2].split("=")[1]
app.run()
def fine():
    assert not app.exception, app.exception[0].stack_trace
    assert not app.error, [e.value for e in app.error]
    return app
def show(mode):
    next(b for b in fine().button_group if b.key == "inside-mode").set_value(mode).run()
def box(key):
    return next(b for b in fine().selectbox if b.key == key)
show("Two models, unit by unit")
assert any("units are in both" in m.value for m in app.markdown)
site = next(o for o in box("diff-site").options if ".mid" in o or "mid ·" in o)
box("diff-site").select(site).run()
assert any(c.value.startswith("Only in base: ") for c in fine().caption)
units = next(t.value for t in app.dataframe if "change" in t.value.columns)
assert (units.change == 0).all() and len(units) == int(site.split(" · ")[1].split(" ")[0])
box("diff-second").select(box("diff-first").value).run()
assert any("Every weight is the same" in c.value for c in fine().caption)
show("One model, layer by layer")
layers = next(t.value for t in fine().dataframe if "layer" in t.value.columns)
assert any("→" in str(cell) for cell in layers.outputs) and len(layers["of weights"].iloc[0]) == 48
assert any("not measured yet" in c.value for c in app.caption)
next(b for b in app.button if b.key == "activations-run").click().run()
print("TORCH", "torch" in sys.modules)
fine()
"""


def test_two_models_are_held_side_by_side_and_layers_are_shown(bench, pair):
    assert "TORCH False" in drive(bench.settings, "", f"models={','.join(pair)}", script=INSIDE)
    (job,) = st.jobs.list_jobs(bench.store, None, 1)
    assert job.operation == "activations" and job.parent_model_id == pair[1] and job.spec["image_size"] == 32
