"""A retraining on several data sets, and on images drawn by contrast or by how badly the parent rebuilds them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import store as st
from core.errors import CoreError
from core.mixing import set_and_row
from core.operations.training_images import training_images
from core.specs import RetrainSpec
from dcaecore import ALONE
from tests.core.test_inspection import TRAINING
from tests.core.test_operation_retrain import Dies


class Silent:
    def __init__(self, settings) -> None:
        self.settings, self.lines = settings, []

    def progress(self, *_args, **_options) -> None: ...

    def log(self, level, message) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def parent(bench):
    return bench.add().id


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Fields of a training on the sample set and on a folder of pictures: three of the former to one of the latter."""
    folder = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(chance.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return {
        **TRAINING, "batch_size": 4, "more_data": [{"kind": "folder", "location": str(folder)}], "data_weights": [3.0, 1.0],
    }  # fmt: skip


def test_each_batch_holds_its_share_and_each_set_and_slice_its_figures(bench, service, parent, mixture):
    job = bench.run("retrain", parent, **mixture)
    table = service.image_losses(job.id)
    drawn = {name: sum(int(c) for row, c in zip(table.row_ids, table.figures["count"], strict=True) if row.startswith(name))
             for name in ("1:", "2:")}  # fmt: skip
    assert drawn == {"1:": 12, "2:": 4}
    assert any("Shares of the 2 data sets in a batch: 0.75, 0.25 at first" in line["message"] for line in bench.log(job))
    slices = service.slice_table(job.id)
    assert [row["slice"] for row in slices] == [
        "high contrast", "low contrast", "middle contrast", "set 1: mspacman", f"set 2: {mixture['more_data'][0]['location']}"
    ]  # fmt: skip
    # Half of the validation images are of each set, so their figures' mean is the whole's.
    assert (slices[3]["psnr_db"] + slices[4]["psnr_db"]) / 2 == pytest.approx(job.result["validation"]["psnr_db"])
    assert job.result["slices"]["psnr_db.set_1"] == slices[3]["psnr_db"]
    dataset = st.get_model(bench.store, job.model_id).dataset
    assert dataset["kind"] == "mixture" and [part["kind"] for part in dataset["sets"]] == ["sample", "folder"]
    assert bench.run("retrain", parent, **mixture).model_id == job.model_id


def test_the_shares_are_shown_before_anything_runs(service, mixture):
    steps, curves = service.share_curve({**mixture, "data_weights_end": [0.0, 1.0]})
    first, second = curves.values()
    assert steps == [0, 1, 2, 3] and first[1] == pytest.approx(2 / (2 + 1))
    assert list(curves)[0] == "set 1: mspacman" and [a + b for a, b in zip(first, second, strict=True)] == pytest.approx(
        [1.0] * 4
    )
    assert (first[0], first[-1]) == (0.75, 0.0) and first == sorted(first, reverse=True)
    assert service.share_curve(TRAINING) == ([], {})


def test_a_mixture_resumes_to_the_same_model(bench, parent, mixture):
    fields = {**mixture, "n_epochs": 2, "data_weights_end": [0.0, 1.0], "seed": 3, "save_interval": 1}
    whole = bench.run("retrain", parent, **fields)
    bench.submit("retrain", parent, **fields)
    job = bench.claim()
    with pytest.raises(SystemError):
        bench.perform(job, Dies)
    st.jobs.resume(bench.store, job.id)
    row = bench.perform(bench.claim())
    assert any("Going on from step 4" in line["message"] for line in bench.log(row))
    assert row.state == "done" and row.model_id == whole.model_id
    assert any("0.75, 0.25 at first, 0, 1 at the last step" in line["message"] for line in bench.log(row))


def test_rows_of_a_mixture_are_left_out_weighted_and_shown_by_their_set(bench, service, parent, mixture):
    values = service.leave_out(service.weighted(mixture, {"2:01.png": 5.0}), ["1:00000003", "2:02.png"])
    assert values["data"]["deny_rows"] == ("00000003",) and values["more_data"][0]["deny_rows"] == ("02.png",)
    spec = RetrainSpec.model_validate(values)
    assert spec.row_weights == (("2:01.png", 5.0),) and set_and_row(spec, "2:01.png") == (1, "01.png")
    images = training_images(spec, Silent(bench.settings), ALONE)
    ids = {images.part.frames.row_ids[int(row)] for row in images.part.rows}
    assert "2:02.png" not in ids and "1:00000003" not in ids
    assert service.training_frame(values, "2:01.png") == service.frame(mixture["more_data"][0], "01.png")
    for row in ("3:01.png", "01.png", "0:01.png"):
        with pytest.raises(CoreError, match="no row"):
            service.training_frame(values, row)
    with pytest.raises(CoreError, match="left out and have a weight"):
        service.retrain_model(parent, service.leave_out(values, ["2:01.png"]))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_images_with_more_contrast_are_drawn_more_often(bench, tmp_path, power):
    for number in range(10):  # the left half is grey, the right one darker by the number
        picture = np.full((32, 32, 3), 128, dtype=np.uint8)
        picture[:, 16:] = 128 - 12 * number
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    spec = RetrainSpec.model_validate(
        {**TRAINING, "data": {"kind": "folder", "location": str(tmp_path)}, "draw_by": "contrast", "draw_power": power}
    )
    images = training_images(spec, Silent(bench.settings), ALONE)
    levels = np.array([int(images.part.frames.row_ids[int(row)][0]) for row in images.part.rows], dtype=float)
    wanted = np.clip((levels / levels.mean()) ** power, 1 / 20, 20)
    assert images.stream.order.weights == pytest.approx(wanted, rel=0.05 * power)


def test_images_that_the_parent_rebuilds_worst_are_drawn_more_often(bench, service, parent):
    fields = {**TRAINING, "draw_by": "loss"}
    other = bench.add(seed=1, name="never looked at").id
    with pytest.raises(CoreError, match="not looked at yet"):
        service.retrain_model(other, fields)
    service.inspect_images(parent, {"image_size": 32})
    inspected = bench.perform(bench.claim())
    job = service.retrain_model(parent, fields)
    assert job.spec["loss_table"] == inspected.result["table_digest"]
    done = bench.perform(bench.claim())
    made = st.get_model(bench.store, done.model_id)
    assert made.spec["loss_table"] == job.spec["loss_table"] == done.result["loss_table_digest"]
    again = bench.run("reproduce", made.id)  # in a store of its own, with the inspection of the record
    assert again.result["identical"]
    table = service.image_table(parent)
    losses = bench.store.blobs.read(job.spec["loss_table"])
    images = training_images(RetrainSpec.model_validate(job.spec), Silent(bench.settings), ALONE, losses)
    errors = 10 ** (-np.array(table.psnr_db) / 10)
    assert images.stream.order.weights == pytest.approx(np.clip(errors / errors.mean(), 1 / 20, 20))
    with pytest.raises(CoreError, match="of other images"):
        service.retrain_model(parent, {**fields, "data": {"location": "mixed"}})
    with pytest.raises(CoreError, match="of one data set"):
        service.retrain_model(parent, {**fields, "more_data": [{}]})
    with pytest.raises(CoreError, match="not in the store"):
        bench.run("retrain", parent, **fields, loss_table="0" * 64)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data_weights": [1.0]}, "no effect: there is one data set"),
        ({"data_temperature": 2.0}, "no effect: there is one data set"),
        ({"more_data": [{}], "data_weights": [1.0]}, "one number for each of the 2 data sets"),
        ({"more_data": [{}], "data_weights": [1.0, -1.0]}, "none below 0"),
        ({"more_data": [{}], "data_weights_end": [1.0, 1.0]}, "goes with data_weights"),
        ({"more_data": [{"skip_broken": True}]}, "for all data sets or for none"),
        ({"draw_power": 2.0}, "draw_power would have no effect"),
        ({"loss_table": "ab"}, "loss_table would have no effect"),
    ],
)
def test_what_cannot_be_is_refused(service, parent, fields, words):
    with pytest.raises(CoreError, match=words):
        service.retrain_model(parent, {**TRAINING, **fields})
