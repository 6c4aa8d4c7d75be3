"""Single images: figures against the parent, near-duplicates, and leaving images out of a training."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import store as st
from core.errors import CoreError
from core.inspection import near_duplicates
from core.operations.models import load
from dcaecore import DataError, DataSource, open_frames, split_rows
from dcaecore.images import to_square
from dcaecore.metrics import psnr_db
from dcaecore.pinned import to_tensor, to_uint8

TRAINING = {
    "image_size": 32, "batch_size": 2, "n_epochs": 1, "steps_per_epoch": 4, "warmup_epochs": 0, "init_lr": 1e-2, "val_steps": 4,
    "num_workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def family(bench):
    """A parent and its retrained child."""
    parent = bench.add()
    return parent.id, bench.run("retrain", parent.id, **TRAINING).model_id


@pytest.fixture(scope="module")
def table(bench, service, family):
    service.inspect_images(family[1], {"image_size": 32})
    assert bench.perform(bench.claim()).state == "done"
    return service.image_table(family[1])


def test_every_image_of_the_part_has_its_own_figures(bench, service, family, table):
    frames = open_frames(DataSource(), cache_folder=bench.settings.data_folder)
    rows = split_rows(frames).train
    assert list(table.row_ids) == [frames.row_ids[int(row)] for row in rows] and table.broken == ()
    for place in (0, len(rows) - 1):
        image, _ = to_square(frames.image(int(rows[place])), 32)
        box = np.zeros((1, 32, 32), dtype=bool)
        top, bottom, left, right = to_square(frames.image(int(rows[place])), 32)[1]
        box[0, top:bottom, left:right] = True
        for ref, found in ((family[1], table.psnr_db), (family[0], table.parent_psnr_db)):
            with torch.inference_mode():
                output = to_uint8(load(bench.store, ref).model.eval()(to_tensor(np.stack([image]))))
            assert found[place] == pytest.approx(
                psnr_db(output, image[None], box)[0], abs=0.02
            )  # rounded to 8 bits from another batch size
    assert service.image_table(family[0]) is None


def test_the_worst_and_the_most_regressed_come_first(bench, service, family, table):
    worst = table.rows("worst")
    assert [row["psnr_db"] for row in worst] == sorted(table.psnr_db)
    changes = [row["change_db"] for row in table.rows("regressed", limit=5)]
    assert changes == sorted(changes) and len(changes) == 5
    assert changes[0] == min(a - b for a, b in zip(table.psnr_db, table.parent_psnr_db, strict=True))
    with pytest.raises(CoreError, match="ordered by"):
        table.rows("best")
    service.inspect_images(family[0], {"image_size": 32, "max_images": 5, "part": "validation"})
    bench.perform(bench.claim())
    baseline = service.image_table(family[0])
    assert len(baseline.row_ids) == 5 and baseline.parent_psnr_db is None
    with pytest.raises(CoreError, match="no parent"):
        baseline.rows("regressed")


def test_near_duplicates_are_found_and_a_moved_sprite_is_none(table):
    chance = np.random.default_rng(0)
    still = chance.uniform(0, 255, size=(32, 32)).astype(np.float32)
    moved = still.copy()
    moved[4:6, 4:6] = 255 - moved[4:6, 4:6]
    noisy = still + chance.normal(0, 1, size=still.shape).astype(np.float32)
    other = chance.uniform(0, 255, size=(32, 32)).astype(np.float32)
    images = np.stack([still, moved, other, noisy, other, moved]).reshape(6, -1)
    for block in (2, 512):
        assert near_duplicates(images, block=block).tolist() == [-1, -1, -1, 0, 2, 1]
    listed = table.rows("row", duplicates=True)
    assert all(row["nearly_equals"] in table.row_ids and row["nearly_equals"] < row["row"] for row in listed)


def test_images_left_out_are_in_the_identity_and_move_no_other_image(bench, service, family, table):
    worst = [row["row"] for row in table.rows("worst", limit=3)]
    data = service.without({"kind": "sample", "location": "mspacman"}, worst)
    assert service.without(data, worst[:1]) == data and data["deny_rows"] == tuple(sorted(worst))
    job = bench.run("retrain", family[0], **TRAINING, data=data)
    made = st.get_model(bench.store, job.model_id)
    assert job.model_id != family[1] and made.spec["data"]["deny_rows"] == sorted(worst)
    assert made.dataset["rows"] == len(table.row_ids) - 3
    picture = Image.open(io.BytesIO(service.frame(data, worst[0])))
    assert picture.size == (160, 210)
    with pytest.raises(CoreError, match="no row"):
        service.frame(data, "nothing")


def test_a_denied_image_changes_no_other_images_part(tmp_path):
    chance = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i:02d}.png")
    frames = open_frames(DataSource("folder", str(tmp_path)), cache_folder=tmp_path)
    whole = split_rows(frames)
    denied = [frames.row_ids[int(whole.train[0])], frames.row_ids[int(whole.test[0])]]
    fewer = split_rows(frames, deny=denied)
    assert fewer.train.tolist() == whole.train[1:].tolist() and fewer.test.tolist() == whole.test[1:].tolist()
    assert fewer.validation.tolist() == whole.validation.tolist()
    with pytest.raises(DataError, match="no image for test"):
        split_rows(frames, deny=[frames.row_ids[int(row)] for row in whole.test])
