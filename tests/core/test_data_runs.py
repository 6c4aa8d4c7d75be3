"""Test runs on any images: their own protocol, beside the pinned figures and never among them; folders through a model."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import store as st
from core.compare import compare
from core.errors import CoreError
from core.inference import COLUMNS, JOURNAL, SUMMARY, TABLE
from core.operations import infer as infer_operation
from core.operations.context import Context
from core.operations.infer import output_names
from core.operations.models import load
from core.quality import quality
from core.seeing import image_lines
from dcaecore import DataError, to_uint8
from dcaecore.images import to_square
from dcaecore.metrics import psnr_db
from dcaecore.pinned import to_tensor

SIZE = {"image_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven pictures of three shapes in two folders, of which two differ in their ending alone."""
    where, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (width, height) in enumerate([(40, 40), (48, 32), (20, 60)] * 2):
        name = where / ("b" if number % 2 else "a") / f"{number}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(name)
    Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(where / "a" / "0.bmp")
    return where


@pytest.fixture(scope="module")
def pair(bench):
    """A baseline and a pruned model, evaluated on pinned images and run on the folder (see `ran`)."""
    base = bench.add(name="base").id
    pruned = bench.run("prune", base, rate=0.5).model_id
    for ref in (base, pruned):
        bench.run("evaluate", ref, **SIZE, num_images=20, num_save_images=2)
    return base, pruned


@pytest.fixture(scope="module")
def ran(bench, pair, folder):
    before = [st.scores.scores(bench.store, ref) for ref in pair], [st.scores.images(bench.store, ref) for ref in pair]
    for ref in pair:
        bench.run("testrun", ref, data={"kind": "folder", "location": str(folder)}, **SIZE, num_save_images=3)
    return before


def test_a_run_changes_nothing_that_is_judged_by(bench, service, pair, ran):
    after = [st.scores.scores(bench.store, ref) for ref in pair], [st.scores.images(bench.store, ref) for ref in pair]
    assert after == ran
    assert compare(bench.store, pair).protocol["source"] == "sample:mspacman"
    (run,) = service.data_runs(pair)
    assert set(run.models) == set(pair) and run.protocol["run"] == "all" and run.protocol["num_images"] == 7
    assert "7 images of folder:" in run.title


def test_its_figures_are_those_of_each_image(bench, service, pair, ran, folder):
    (run,) = service.data_runs(pair[:1])
    row = st.scores.image_scores(bench.store, pair[0], "run", protocol_id=run.id)
    model = load(bench.store, pair[0]).model
    for name, found in zip(row.row_ids, row.values["psnr_db"], strict=True):
        with Image.open(folder / name) as opened:
            image, (top, bottom, left, right) = to_square(opened, 32)
        content = np.zeros((1, 32, 32), dtype=bool)
        content[0, top:bottom, left:right] = True
        with torch.no_grad():
            made = to_uint8(model(to_tensor(image[None].copy())))
        assert found == pytest.approx(float(psnr_db(made, image[None], content)[0]), abs=0.05)
    assert np.mean(row.values["psnr_db"]) == pytest.approx(run.models[pair[0]].means["psnr_db"])


def test_a_comparison_on_a_run_holds_its_figures_alone(service, bench, pair, ran):
    pinned, (run,) = service.compare(pair), service.data_runs(pair)
    on = service.compare_on(pair, run.id[:8])
    for ref in pair:
        assert on.figures[ref]["psnr_db"].value == run.models[ref].means["psnr_db"] != pinned.figures[ref]["psnr_db"].value
        assert on.figures[ref]["foreground_psnr_db"].value is None, "pictures without episodes have no median frame"
        assert on.figures[ref]["parameters"] == pinned.figures[ref]["parameters"]
    base, pruned = (run.models[ref].means["psnr_db"] for ref in pair)
    assert on.figures[pair[1]]["psnr_db"].against_baseline == pytest.approx(pruned / base - 1)
    found = quality(bench.store, on, pair[0])
    assert found.differences[pair[1]]["psnr_db"].mean == pytest.approx(pruned - base)
    assert found.intervals[pair[0]]["psnr_db"].count == 7
    lines = image_lines(bench.store, on, pair[0])
    assert len(lines) == 3 and all(set(line.made) == set(pair) for line in lines)
    other = bench.add(seed=5, name="other").id
    assert any("Not run on these images: other" in note for note in service.compare_on([pair[0], other], run.id).notes)
    with pytest.raises(CoreError) as caught:
        service.compare_on(pair, "ffff")
    assert caught.value.code == "run" and run.id in caught.value.legal[0]


def test_a_part_of_the_data_and_other_sizes_are_other_runs(bench, service):
    ref = bench.add(seed=3, name="parts").id
    for fields in ({}, {"part": "validation"}, {"num_images": 5}, {"dtype": "bfloat16"}, {}):
        bench.run("testrun", ref, **{**SIZE, "num_images": 8, "num_save_images": 0, **fields})
    assert len(service.data_runs([ref])) == 4 and st.scores.scores(bench.store, ref) == {}


def test_wrong_runs_are_refused_before_a_job(service, bench, pair, tmp_path):
    count = len(service.jobs())
    with pytest.raises(DataError):
        service.run_on_data(pair, {"data": {"kind": "folder", "location": str(tmp_path / "nowhere")}, **SIZE})
    with pytest.raises(CoreError) as caught:
        service.run_on_data(pair, {"data": {"kind": "hub", "location": "a/b", "validation_location": "a/c"}, **SIZE})
    assert "one place" in caught.value.message
    assert len(service.jobs()) == count
    with pytest.raises(DataError, match="deny-list"):
        bench.run("testrun", pair[0], data={"deny_rows": ["nothing"]}, **SIZE)


def table(out):
    with (out / TABLE).open() as file:
        return list(csv.DictReader(file))


def test_a_folder_goes_through_a_model(bench, service, pair, folder, tmp_path):
    out = tmp_path / "made"
    given = {"data": {"kind": "folder", "location": str(folder)}, "out": str(out), "save_latents": True, **SIZE, "batch_size": 3}
    job = bench.run("infer", pair[0], **given)
    lines = table(out)
    assert [line["file"] for line in lines] == sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*.*"))
    assert {"images/a/0.png.png", "images/a/0.bmp.png", "images/b/1.png"} <= {line["output"] for line in lines}
    model = load(bench.store, pair[0]).model
    for line in lines:
        with Image.open(folder / line["file"]) as source, Image.open(out / line["output"]) as made:
            assert made.size == source.size == (int(line["width"]), int(line["height"]))
            square, _ = to_square(source, 32)
        with torch.no_grad():
            z = model.encode(to_tensor(square[None].copy()))[0].numpy()
        assert np.allclose(np.load(out / line["latent"]), z, atol=1e-5)
    run = service.data_runs([pair[0]])
    assert not run or job.result["means"]["psnr_db"] == pytest.approx(run[0].models[pair[0]].means["psnr_db"], abs=0.02)
    found = service.inferences(pair[0])[0]
    assert found.there and found.num_images == 7 and found.rows()[0]["psnr_db"] == float(lines[0]["psnr_db"])
    assert set(lines[0]) <= set(COLUMNS) and sorted(os.listdir(tmp_path)) == ["made"], "nothing half-made is left"
    shutil.rmtree(out)
    with pytest.raises(CoreError, match="not in"):
        service.inferences(pair[0])[0].rows()


def test_a_square_picture_is_what_the_model_made(bench, pair, folder):
    job = bench.run("infer", pair[0], data={"kind": "folder", "location": str(folder)}, size="square", max_images=2, **SIZE)
    out = bench.store.job_folder(job.id) / "results"
    assert job.result["out"] == str(out) and len(table(out)) == 2
    for line in table(out):
        with Image.open(out / line["output"]) as made:
            assert made.size == (32, 32)


class Killed(Exception):
    """Stands for a SIGKILL: nothing is caught, nothing is cleaned up."""


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(bench, pair, folder, tmp_path, monkeypatch):
    whole = {"data": {"kind": "folder", "location": str(folder)}, **SIZE, "batch_size": 2}
    bench.run("infer", pair[0], **whole, out=str(tmp_path / "whole"))
    out, seen = tmp_path / "resumed", []
    bench.submit("infer", pair[0], **whole, out=str(out))
    job = bench.claim()
    batch = infer_operation._batch

    def dying(*args):
        seen.append(1)
        if len(seen) == 3:
            raise Killed
        return batch(*args)

    monkeypatch.setattr(infer_operation, "_batch", dying)
    with pytest.raises(Killed):
        bench.perform(job)
    assert not out.exists()
    (work,) = tmp_path.glob(".resumed.partial-*")
    with (work / JOURNAL).open("a") as journal:
        journal.write('{"file": "a/2.p')  # torn in mid-line
    monkeypatch.setattr(infer_operation, "_batch", lambda *args: (seen.append(len(args[3])), batch(*args))[1])
    del seen[:]
    st.jobs.request(bench.store, job.id, "resume")
    ended = bench.perform(bench.claim())
    assert ended.state == "done" and sum(seen) == 3, "four of seven images were there"
    for name in (TABLE, *(line["output"] for line in table(out))):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob(".*")) and not (out / JOURNAL).exists()


def test_a_run_that_died_after_its_last_step_is_done(bench, pair, folder, tmp_path):
    out = tmp_path / "out"
    job = bench.run("infer", pair[0], data={"kind": "folder", "location": str(folder)}, out=str(out), **SIZE)
    context = Context(bench.store, job, bench.settings)
    again = infer_operation.run(infer_operation.InferSpec.model_validate(job.spec), context)
    context.close()
    assert again.result == job.result and json.loads((out / SUMMARY).read_text())["job"] == job.id


def test_broken_images_stop_the_run_or_are_named(bench, pair, folder, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "a" / "broken.png").write_bytes(b"no picture")
    data, out = {"kind": "folder", "location": str(bad)}, tmp_path / "out"
    with pytest.raises(DataError, match="a/broken.png"):
        bench.run("infer", pair[0], data=data, out=str(out), **SIZE)
    assert sorted(os.listdir(tmp_path)) == ["bad"], "nothing half-made is left"
    job = bench.run("infer", pair[0], data={**data, "skip_broken": True}, out=str(out), **SIZE)
    assert job.result["num_broken"] == 1 and job.result["num_images"] == 7
    (line,) = [line for line in table(out) if line["error"]]
    assert line["file"] == "a/broken.png" and not line["psnr_db"] and not line["output"]


def test_a_cancelled_run_leaves_nothing(bench, pair, folder, tmp_path):
    bench.submit(
        "infer", pair[0], data={"kind": "folder", "location": str(folder)}, out=str(tmp_path / "o"), **SIZE, batch_size=1
    )
    job, polls = bench.claim(), []

    class Cancelling(Context):
        def poll(self):
            polls.append(1)
            if len(polls) == 5:
                st.jobs.request(self.store, job.id, "cancel")
            return super().poll()

    assert bench.perform(job, Cancelling).state == "cancelled" and not os.listdir(tmp_path)


def test_results_never_overwrite_nor_lie_among_the_images(service, bench, pair, folder, tmp_path):
    data = {"kind": "folder", "location": str(folder)}
    for out, code in ((tmp_path, "exists"), (folder / "results", "out")):
        with pytest.raises(CoreError) as caught:
            service.infer(pair[0], {"data": data, "out": str(out), **SIZE})
        assert caught.value.code == code
    with pytest.raises(CoreError, match="there already"):
        bench.run("infer", pair[0], data=data, out=str(tmp_path), **SIZE)
    with pytest.raises(DataError):
        service.infer(pair[0], {"data": {"kind": "folder", "location": str(tmp_path / "nowhere")}, **SIZE})


def test_two_pictures_never_have_one_name():
    assert output_names(["a.jpg", "a.png", "b.png", "x/a.jpg"]) == {
        "a.jpg": "a.jpg.png", "a.png": "a.png.png", "b.png": "b.png", "x/a.jpg": "x/a.png"
    }  # fmt: skip


def test_what_is_under_way_and_what_failed_is_told(service, bench, folder, tmp_path):
    fresh = bench.add(seed=5, name="fresh").id
    data = {"kind": "folder", "location": str(folder)}
    (job,) = service.run_on_data([fresh], {**SIZE, "data": data})
    assert [row.id for row in service.runs_under_way([fresh])] == [job.id]
    assert bench.perform(bench.claim()).state == "done"
    assert service.runs_under_way([fresh]) == [] == service.failed_runs([fresh])
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "0.png").write_bytes(b"no picture")
    asked = service.infer(fresh, {**SIZE, "data": {"kind": "folder", "location": str(bad)}, "out": str(tmp_path / "out")})
    with pytest.raises(DataError):
        bench.perform(bench.claim())
    assert [row.id for row in service.failed_runs([fresh])] == [asked.id]
    with pytest.raises(CoreError, match="has no results"):
        service.inference(asked.id)
