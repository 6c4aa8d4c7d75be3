"""Augmentations: the same draw for the same step, each does what it says, masks move with the image, only the input is blurred."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from dcaecore import BatchStream, DataSource, ImageCache, open_frames, split_rows
from dcaecore.augment import Augment
from dcaecore.latents import pays

SIDE = 32


def picture() -> np.ndarray:
    """A gradient with a bright square, so that every move can be seen."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    image = np.stack([x * 7, y * 7, (x + y) * 3], axis=-1).astype(np.uint8)
    image[6:10, 20:26] = 255
    return image


def draw(step: int = 0, place: int = 0, **how: float):
    content = np.zeros((SIDE, SIDE), dtype=bool)
    content[:, 4:28] = True
    moving = np.zeros_like(content)
    moving[6:10, 20:26] = True
    return Augment(**how)(picture(), content, moving, seed=3, step=step, place=place)


def test_nothing_asked_for_changes_nothing():
    plain = draw()
    assert np.array_equal(plain.target, picture()) and plain.seen is plain.target and not Augment().any


def test_a_flip_is_a_mirror_image_with_its_masks():
    flipped = draw(flip=1.0)
    assert np.array_equal(flipped.target, picture()[:, ::-1])
    assert np.array_equal(flipped.moving, draw().moving[:, ::-1]) and np.array_equal(flipped.content, draw().content[:, ::-1])
    share = np.mean([not np.array_equal(draw(step, flip=0.5).target, picture()) for step in range(200)])
    assert 0.35 < share < 0.65


@pytest.mark.parametrize("name", ["crop", "scale", "rotate", "shift", "jitter", "blur"])
def test_each_is_a_function_of_seed_step_and_place(name):
    strength = {"rotate": 20.0, "blur": 3.0}.get(name, 0.3)
    first, again = draw(1, 2, **{name: strength}), draw(1, 2, **{name: strength})
    for field in fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))
    others = [draw(2, 2, **{name: strength}), draw(1, 3, **{name: strength})]
    assert all(not np.array_equal(first.seen, other.seen) for other in others)


def test_the_masks_move_with_the_image():
    for step in range(20):
        found = draw(step, flip=0.5, crop=0.3, scale=0.2, rotate=15.0, shift=0.1)
        bright = (found.target.min(axis=-1) > 200) & found.content
        if bright.sum() > 8:
            assert (bright & found.moving).sum() / bright.sum() > 0.7
    # What comes in from outside is black and no content.
    far = [draw(step, shift=0.5) for step in range(20)]
    assert any(found.content.sum() < 0.7 * draw().content.sum() for found in far)


def test_a_shift_and_a_crop_move_by_what_they_say():
    for step in range(30):
        moved = draw(step, shift=0.25)
        rows = np.flatnonzero(moved.moving.any(axis=1))
        if len(rows) == 4:
            assert abs(rows[0] - 6) <= 8
        cropped = draw(step, crop=0.5)
        assert cropped.moving.sum() <= 4 * 24 * 1.3 and cropped.content.any()


def test_only_the_input_is_blurred_and_the_jitter_leaves_padding_black():
    blurred = draw(blur=4.0)
    assert np.array_equal(blurred.target, picture()) and not np.array_equal(blurred.seen, picture())
    coloured = draw(jitter=0.5)
    assert not coloured.target[:, :4].any() and not np.array_equal(coloured.target[:, 4:28], picture()[:, 4:28])
    assert np.array_equal(coloured.seen, coloured.target)


def test_a_stream_gives_the_same_augmented_batches_again_and_caches_no_latents(data_dir):
    cache = ImageCache(open_frames(DataSource(), cache_folder=data_dir), SIDE)
    rows = split_rows(cache.frames).train
    how = Augment(flip=0.5, rotate=10.0, blur=2.0)
    one, two = (BatchStream(cache, rows, batch_size=3, seed=5, augment=how) for _ in range(2))
    plain = BatchStream(cache, rows, batch_size=3, seed=5, augment=Augment())
    for step in (0, 7, 50):
        a, b, c = one.batch(step), two.batch(step), plain.batch(step)
        assert torch.equal(a.images_BCHW, b.images_BCHW) and torch.equal(a.seen_BCHW, b.seen_BCHW)
        assert a.row_ids == c.row_ids and c.seen_BCHW is None and not torch.equal(a.images_BCHW, c.images_BCHW)
        assert not torch.equal(a.images_BCHW, a.seen_BCHW)
    assert pays(plain, 10_000, 4) and not pays(one, 10_000, 4)
    halves = [BatchStream(cache, rows, batch_size=4, seed=5, augment=how, rank=r, world_size=2).batch(3) for r in (0, 1)]
    whole = BatchStream(cache, rows, batch_size=4, seed=5, augment=how).batch(3)
    assert torch.equal(torch.cat([half.images_BCHW for half in halves]), whole.images_BCHW)
