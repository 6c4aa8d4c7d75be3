"""Training images one by one while a retraining runs: their file, its orders, and images that are drawn more often in the next one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import store as st
from core.errors import CoreError
from core.image_losses import FILE_NAME, read_losses, tagged, write_losses
from dcaecore import DataError
from tests.core.test_inspection import TRAINING

LOSSES = {
    "first": np.array([0, 9, 5, 7], dtype=np.float32),
    "last": np.array([0, 2, 4, 1], dtype=np.float32),
    "mean": np.array([0, 3, 8, 2], dtype=np.float32),
    "step": np.array([0, 4, 3, 2], dtype=np.int32),
    "count": np.array([0, 3, 1, 2], dtype=np.int32),
}


@pytest.fixture(scope="module")
def trained(bench):
    return bench.run("retrain", bench.add().id, **TRAINING)


def test_the_file_holds_what_was_drawn_and_orders_it(tmp_path):
    write_losses(tmp_path, ["a", "ü b", "c1", "d1"], LOSSES)
    table = read_losses(tmp_path)
    assert table.row_ids == ("ü b", "c1", "d1")
    order = {name: [row["row"] for row in table.rows(name)] for name in ("worst", "least gained", "risen", "least drawn", "row")}
    assert order == {
        "worst": ["c1", "ü b", "d1"], "least gained": ["c1", "d1", "ü b"], "risen": ["ü b", "d1", "c1"],
        "least drawn": ["c1", "d1", "ü b"], "row": ["ü b", "c1", "d1"],
    }  # fmt: skip
    first = {"row": "c1", "mean_loss": 8.0, "last_loss": 4.0, "first_loss": 5.0, "step": 3, "count": 1}
    assert table.rows("worst", limit=1) == [first]
    tags = {"d1": ("dark", "odd")}
    assert [row["row"] for row in tagged(table.rows("row"), tags, "1")] == ["c1", "d1"]
    assert tagged(table.rows("row"), tags, "odd") == [{**table.rows("row")[2], "tags": "dark, odd"}]
    assert tagged(table.rows("worst"), {}, "1", 1) == [{**first, "tags": ""}]
    with pytest.raises(CoreError, match="ordered by 'best'"):
        table.rows("best")
    assert read_losses(tmp_path / "nowhere") is None
    np.savez_compressed(tmp_path / FILE_NAME, version=9, row_ids=np.zeros(0, dtype=np.uint8))
    with pytest.raises(CoreError, match="another version"):
        read_losses(tmp_path)


def test_a_retraining_tells_how_each_image_fared(service, trained):
    table = service.image_losses(trained.id)
    assert int(table.figures["count"].sum()) == 4 * 2 and table.figures["step"].max() == 4
    _, losses = st.metrics.series(service.store, trained.id, "loss")
    last = [row["last_loss"] for row in table.rows("row") if row["step"] == 4]
    assert np.mean(last) == pytest.approx(losses[-1], rel=1e-5)
    other = service.inspect_images(trained.parent_model_id, {"image_size": 32})
    with pytest.raises(CoreError, match="no retraining"):
        service.image_losses(other.id)
    service.control(other.id, "cancel")


def test_weighted_rows_are_drawn_more_often_and_are_part_of_the_identity(bench, service, trained):
    rows = [row["row"] for row in service.image_losses(trained.id).rows("worst", limit=2)]
    values = service.weighted(TRAINING, {rows[0]: 100.0, rows[1]: 1.0})
    assert values["row_weights"] == ((rows[0], 100.0),)
    assert service.weighted(values, {rows[0]: 1.0})["row_weights"] == ()
    job = bench.run("retrain", trained.parent_model_id, **values)
    made = st.get_model(bench.store, job.model_id)
    assert made.spec["row_weights"] == [[rows[0], 100.0]] and job.model_id != trained.model_id
    table = service.image_losses(job.id)
    # 100 of 100 + N - 1 draws; the other rows share what is left.
    assert dict(zip(table.row_ids, table.figures["count"].tolist(), strict=True))[rows[0]] >= 3


def test_weights_that_cannot_be_are_refused(bench, service, trained):
    parent = trained.parent_model_id
    for weights, words in (
        ([["00000001", 0.0]], "0.01 to 100 times"),
        ([["00000001", 2.0], ["00000001", 3.0]], "one weight"),
    ):
        with pytest.raises(CoreError, match=words):
            service.retrain_model(parent, {**TRAINING, "row_weights": weights})
    with pytest.raises(CoreError, match="left out and have a weight"):
        service.retrain_model(parent, {**TRAINING, "data": {"deny_rows": ["00000001"]}, "row_weights": [["00000001", 2.0]]})
    with pytest.raises(DataError, match="not there: nothing"):
        bench.run("retrain", parent, **TRAINING, row_weights=[["nothing", 2.0]])


def test_a_weight_without_effect_is_said(bench, trained):
    from dcaecore import DataSource, open_frames, split_rows

    frames = open_frames(DataSource(), cache_folder=bench.settings.data_folder)
    held = frames.row_ids[int(split_rows(frames).test[0])]
    job = bench.run("retrain", trained.parent_model_id, **TRAINING, row_weights=[[held, 2.0]])
    assert any("no training images" in line["message"] and held in line["message"] for line in bench.log(job))


def test_the_terminal_lists_them(bench, service, trained):
    from core.terminal.app import app

    said = CliRunner().invoke(
        app, ["--store", str(bench.settings.home), "--json", "image-losses", trained.id, "--order", "row", "--limit", "3"]
    )
    data = json.loads(said.stdout)["data"]
    rows = service.image_losses(trained.id).rows("row", limit=3)
    assert data["images"] == tagged(rows, {}) and data["num_images"] > 3
    told = CliRunner().invoke(app, ["--store", str(bench.settings.home), "--json", "slices", trained.id])
    assert json.loads(told.stdout)["data"] == service.slice_table(trained.id)
    shown = CliRunner().invoke(app, ["--store", str(bench.settings.home), "image-losses", trained.id])
    assert shown.exit_code == 0 and "images were drawn" in shown.stdout


def test_images_are_tagged_wherever_they_are_listed(bench, service, trained, monkeypatch):
    from core.terminal.app import app
    from store import StoreError

    monkeypatch.setenv("OFFSHOOT_DATA_DIR", str(bench.settings.data_folder))
    first, second = (row["row"] for row in service.image_losses(trained.id).rows("row", limit=2))
    verb = ["--store", str(bench.settings.home), "--json", "tag-images", trained.id]
    for word in ("odd", "dark", "odd"):
        assert CliRunner().invoke(app, [*verb, first, second, "--tag", word]).exit_code == 0
    assert service.image_tags(trained.spec["data"]) == {first: ("dark", "odd"), second: ("dark", "odd")}
    said = CliRunner().invoke(app, [*verb, second, "--tag", "odd", "--remove"])
    assert json.loads(said.stdout)["data"] == {second: ["dark"]}
    assert service.image_tags({"location": "mixed"}) == {} and service.image_tags({"split_seed": 9})[second] == ("dark",)
    listed = CliRunner().invoke(
        app, ["--store", str(bench.settings.home), "--json", "image-losses", trained.id, "--containing", "odd"]
    )
    assert [(row["row"], row["tags"]) for row in json.loads(listed.stdout)["data"]["images"]] == [(first, "dark, odd")]
    assert service.training_tags(trained.spec) == {first: ("dark", "odd"), second: ("dark",)}
    copy = {"kind": "parquet", "location": str(bench.settings.data_folder / "samples" / "mspacman.parquet")}
    mixture = {"more_data": [copy]}
    service.tag_training(mixture, [f"1:{second}", f"2:{first}"], "odd")
    assert service.training_tags(mixture) == {
        f"1:{first}": ("dark", "odd"), f"1:{second}": ("dark", "odd"), f"2:{first}": ("odd",)
    }  # fmt: skip
    undrawn = next(row for row in map("{:08d}".format, range(100)) if row not in service.image_losses(trained.id).row_ids)
    assert json.loads(CliRunner().invoke(app, [*verb, undrawn, "--tag", "later"]).stdout)["data"] == {undrawn: ["later"]}
    assert CliRunner().invoke(app, [*verb, undrawn, "--tag", "later", "--remove"]).exit_code == 0
    with pytest.raises(CoreError, match="has no row 'nothing'"):
        CliRunner().invoke(app, [*verb, "nothing", "--tag", "odd"], catch_exceptions=False)
    for word in ("", "a,b", "x" * 41):
        with pytest.raises(StoreError, match="no usable tag"):
            service.tag_images({}, [first], word)
    with pytest.raises(CoreError, match="no row 'nothing'"):
        service.training_frame(trained.spec, "nothing")
