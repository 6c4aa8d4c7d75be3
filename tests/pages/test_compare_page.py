"""What the Compare page says of models on other images, of layers and of two models unit by unit, through Streamlit's test driver."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import store as st
from tests.pages.driving import drive

PAGE, SIZE = "pages/4_Compare.py", {"image_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(where / f"{number}.png")
    return where


@pytest.fixture(scope="module")
def tried(bench, pair, folder):
    """Both models on other images too."""
    for ref in pair:
        bench.run("testrun", ref, data={"kind": "folder", "location": str(folder)}, **SIZE, num_save_images=2)
    return pair


RUNS = """
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
button("testrun-run").click().run()
assert any("no folder" in e.value for e in fine().error), [e.value for e in app.error]
text("path").input(query["folder"]).run()
button("testrun-run").click().run()
assert not fine().error, [e.value for e in app.error]
text("path", 1).input(query["folder"]).run()
button("infer-run").click().run()
assert not fine().error, [e.value for e in app.error]
print("QUEUED")
"""


def test_other_images_stand_beside_the_pinned_ones(bench, tried, folder):
    opened = "open=testrun-open,infer-open"
    assert "QUEUED" in drive(bench.settings, PAGE, f"models={','.join(tried)}", f"folder={folder}", opened, steps=RUNS)
    asked = st.jobs.list_jobs(bench.store, None, 3)
    assert [job.operation for job in asked] == ["infer", "testrun", "testrun"]
    assert {job.parent_model_id for job in asked[1:]} == set(tried) and asked[0].parent_model_id == tried[1]
    assert asked[1].spec["data"]["location"] == str(folder)


INSIDE = """
def show(mode):
    next(b for b in fine().button_group if b.key == "inside-mode").set_value(mode).run()
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
button("activations-run").click().run()
print("TORCH", "torch" in sys.modules)
fine()
assert not app.error, [e.value for e in app.error]
"""


def test_two_models_are_held_side_by_side_and_layers_are_shown(bench, pair):
    assert "TORCH False" in drive(bench.settings, PAGE, f"models={','.join(pair)}", steps=INSIDE)
    (job,) = st.jobs.list_jobs(bench.store, None, 1)
    assert job.operation == "activations" and job.parent_model_id == pair[1] and job.spec["image_size"] == 32


COST = """
cells = next(t.value for t in fine().dataframe if "Decode" in set(t.value.iloc[:, 0]) and "File" in set(t.value.iloc[:, 0]) and
    "p99" in str(t.value))
row = dict(zip(cells.iloc[:, 0], cells.iloc[:, 1]))
assert "p95" in row["Decode"] and "p99" in row["Encode and decode"], row
assert any("Energy an image: not measured: only NVIDIA GPUs" in c.value for c in app.caption), [c.value for c in app.caption]
assert any("1 untimed and 3 timed repeats, models in turn" in c.value and "torch" in c.value for c in app.caption)
assert any("Decode at 32 px, float32, CPU" in c.value for c in app.caption), [c.value for c in app.caption]
text("image sizes (px)").input("[32, 36]").run()
button("benchmark-run").click().run()
assert any("36 x 36 px do not divide" in e.value for e in app.error), [e.value for e in app.error]
text("image sizes (px)").input("[]").run()
text("batch sizes").input("[2]").run()
button("benchmark-run").click().run()
assert not app.error, [e.value for e in app.error]
print("TORCH", "torch" in sys.modules)
"""


def test_costs_have_tails_reasons_and_a_form_for_sizes(bench, pair):
    said = drive(bench.settings, PAGE, f"models={','.join(pair)}", "open=benchmark-open", steps=COST)
    (job,) = st.jobs.list_jobs(bench.store, None, 1)
    assert "TORCH False" in said and job.operation == "benchmark" and job.spec["batch_sizes"] == [2]
    assert {job.parent_model_id, *job.spec["models"]} == set(pair)


ALL = """
found = table("psnr_db")
assert set(found.id) == set(query["ids"].split(",")) and found.decode_ms.notna().all(), found
assert found.psnr_db.dtype == float and found.parameters.max() < 100, "numbers in their units, so that columns sort"
assert not [s for s in app.subheader if s.value == "Images"], "the comparison is not drawn as well"
text("Search").input("kind = pruned").run()
assert len(table("psnr_db")) == 1
text("Search").input("psnr_db >").run()
assert fine().error
"""


def test_all_models_stand_in_one_table(bench, pair):
    drive(bench.settings, PAGE, "view=all models", f"ids={','.join(pair)}", steps=ALL)


ODD = """
assert any("evaluated on other images" in w.value for w in fine().warning), [w.value for w in app.warning]
assert any("come from 3 baselines" in w.value for w in app.warning)
cells = app.dataframe[0].value
row = cells[cells.iloc[:, 0] == "PSNR"].iloc[0]
assert "dB" in row["base"] and row["wide"] == "–" and "dB" in row["lost"], row
next(b for b in app.button if b.label == "Benchmark them together").click().run()
assert any("The weights of lost are not in the store any more" in e.value for e in fine().error), [e.value for e in app.error]
assert any(h.value == "Report" for h in app.subheader), "the rest of the page is still there"
next(b for b in app.button_group if b.key == "inside-mode").set_value("One model, layer by layer").run()
assert any("The weights of lost" in e.value for e in fine().error)
"""


def test_other_sizes_and_lost_weights_say_so_on_the_page(bench, pair):
    wide, lost = bench.add(seed=5, name="wide"), bench.add(seed=6, name="lost")
    bench.run("evaluate", wide.id, image_size=64, num_images=8, num_save_images=1)
    bench.run("evaluate", lost.id, image_size=32, num_images=20, num_save_images=1)
    bench.store.blobs.remove(lost.blob_digest)
    drive(bench.settings, PAGE, f"models={','.join((pair[0], wide.id, lost.id))}", steps=ODD)
