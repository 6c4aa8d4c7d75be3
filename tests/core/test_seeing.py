"""Which image got worse, and pictures made of pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import store as st
from core.compare import compare
from core.errors import CoreError
from core.seeing import image_lines, split_picture, zoomed
from store import NewImage, NewScores
from store.scores import put_new_scores, stored_images

PROTOCOL = {"version": 1, "images_sha256": "c" * 64, "num_images": 3, "image_size": 16, "dtype": "float32", "source": "test"}


def png(value: int, size: tuple[int, int] = (16, 16)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def put(bench, ref: str, psnr: list[float], protocol=PROTOCOL) -> None:
    images = [NewImage(i, png(10 * i), kind) for i in range(3) for kind in ("original", "reconstruction")]
    entry = NewScores(protocol, "test", {"psnr_db": float(np.mean(psnr))}, {"psnr_db": psnr}, ["a", "b", "c"], images, ref)
    pictures = stored_images(bench.store, entry)
    with bench.store.write() as session:
        put_new_scores(bench.store, session, entry, pictures, model_id=ref, job_id=None)


def test_the_worst_regression_comes_first_and_other_protocols_are_left_out(bench):
    base, pruned, better, other = (bench.add(seed=seed, name=f"m{seed}").id for seed in range(4))
    put(bench, base, [30.0, 40.0, 35.0])
    put(bench, pruned, [29.0, 35.0, 34.5])
    put(bench, better, [31.0, 41.0, 30.0])
    put(bench, other, [50.0, 50.0, 50.0], {**PROTOCOL, "images_sha256": "d" * 64})
    found = image_lines(bench.store, compare(bench.store, [base, pruned, better, other]), base)
    # By hand: image 0 loses 1 dB (m1), image 1 loses 5 (m1), image 2 loses 5 (m2): equal ones keep their order.
    assert [(line.index, line.regression_db) for line in found] == [(1, -5.0), (2, -5.0), (0, -1.0)]
    assert set(found[0].made) == {base, pruned, better} and found[0].psnr_db[pruned] == 35.0
    assert [line.index for line in image_lines(bench.store, compare(bench.store, [base, pruned]), base, by_loss=False)] == [
        0,
        1,
        2,
    ]
    alone = image_lines(bench.store, compare(bench.store, [base]), base)
    assert [line.regression_db for line in alone] == [None] * 3
    assert pixels(bench.store.blobs.read(found[0].original))[0, 0, 0] == 10
    assert image_lines(bench.store, compare(bench.store, [bench.add(seed=9, name="new").id]), base) == []
    assert st.scores.images(bench.store, other)


def test_two_pictures_in_one():
    made = pixels(split_picture(png(50), png(200), 0.25))
    assert made.shape == (16, 16, 3) and (made[:, :4] == 50).all() and (made[:, 4] == 255).all() and (made[:, 5:] == 200).all()
    assert (pixels(split_picture(png(50), png(200), 0.0)) == 200).all() and (
        pixels(split_picture(png(50), png(200), 1.0)) == 50
    ).all()
    with pytest.raises(CoreError, match="different sizes"):
        split_picture(png(1), png(1, (16, 8)), 0.5)
    with pytest.raises(CoreError, match="between 0 and 1"):
        split_picture(png(1), png(1), 1.5)


def test_a_part_is_shown_with_hard_pixels():
    board = np.zeros((16, 16, 3), np.uint8)
    board[:8, 8:] = 255
    out = io.BytesIO()
    Image.fromarray(board).save(out, "PNG")
    corner = pixels(zoomed(out.getvalue(), 2, across=1.0, down=0.0, side=64))
    assert corner.shape == (64, 64, 3) and (corner == 255).all()
    whole = pixels(zoomed(out.getvalue(), 1, side=64))
    assert whole.shape == (64, 64, 3) and set(np.unique(whole)) == {0, 255}
    assert pixels(zoomed(png(7, (4, 4)), 8)).size > 0
    with pytest.raises(CoreError):
        zoomed(png(7), 0)
