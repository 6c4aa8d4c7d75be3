"""Several data sets in one training: shares of each batch, temperature, curriculum; rows of all as one source."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dcaecore import (
    BatchStream,
    ConfigError,
    DataSource,
    ImageCache,
    JoinedFrames,
    MixedOrder,
    RowOrder,
    joined_pinned,
    open_frames,
    pin,
)
from dcaecore.contrast import drawn_by, rms_contrast, slice_rows


def mixed(weights=(3.0, 1.0, 0.0), end=None, *, batch_size=6, total=200, temperature=1.0, seed=4):
    orders = [RowOrder(np.arange(first, first + count), seed + first) for first, count in ((0, 7), (100, 50), (200, 3))]
    return MixedOrder(orders, weights, end, batch_size=batch_size, total_steps=total, temperature=temperature, seed=seed)


def set_of(row: int) -> int:
    return row // 100


@pytest.mark.parametrize("batch_size", [1, 6, 8])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_each_batch_holds_each_sets_share_rounded_up_or_down(batch_size, temperature):
    order = mixed(batch_size=batch_size, temperature=temperature)
    share = np.array([3.0, 1.0, 0.0]) ** (1 / temperature)
    share /= share.sum()
    counts = np.array([order.counts(step) for step in range(260)])  # past the end too
    assert (counts.sum(axis=1) == batch_size).all() and counts.min() >= 0
    assert (counts >= np.floor(share * batch_size - 1e-9)).all() and (counts <= np.ceil(share * batch_size + 1e-9)).all()
    assert np.abs(counts.mean(axis=0) - share * batch_size).max() < 0.02


def test_a_high_temperature_evens_sets_out():
    counts = sum(mixed((90.0, 9.0, 1.0), batch_size=8, temperature=50.0).counts(step) for step in range(200))
    assert np.abs(counts / counts.sum() - 1 / 3).max() < 0.02


def test_a_curriculum_goes_in_a_straight_line_and_stays_at_its_end():
    order = mixed((1.0, 0.0, 0.0), (0.0, 1.0, 1.0), total=101)
    assert order.shares_at(np.array([0, 50, 100, 500])).tolist() == pytest.approx(
        np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5], [0, 0.5, 0.5]])
    )
    assert order.counts(0).tolist() == [6, 0, 0] and order.counts(100).tolist() == order.counts(400).tolist() == [0, 3, 3]


def test_draws_are_a_function_of_seed_and_place_and_each_set_comes_in_its_own_order():
    order = mixed((3.0, 2.0, 1.0), (1.0, 1.0, 4.0), total=30)
    drawn = [order.row(place) for place in range(40 * 6)]
    again = mixed((3.0, 2.0, 1.0), (1.0, 1.0, 4.0), total=30)
    places = np.random.default_rng(0).permutation(len(drawn))
    assert [again.row(int(place)) for place in places] == [drawn[int(place)] for place in places]
    for number in range(3):
        own = [row for row in drawn if set_of(row) == number]
        assert sorted(own) == sorted(order.orders[number].row(place) for place in range(len(own)))
    for step in range(40):
        batch = drawn[step * 6 : step * 6 + 6]
        assert np.bincount([set_of(row) for row in batch], minlength=3).tolist() == order.counts(step).tolist()
    other = mixed((3.0, 2.0, 1.0), (1.0, 1.0, 4.0), total=30, seed=5)
    assert [other.row(place) for place in range(240)] != drawn
    # Sets are not in a fixed order within the batch: parts and processes have of all.
    assert len({tuple(set_of(row) for row in drawn[step * 6 : step * 6 + 6]) for step in range(30)}) > 5
    assert {order.spare(place) for place in range(60)} == {*range(7), *range(100, 150), *range(200, 203)}


def test_weights_that_cannot_be_are_refused():
    for weights in ((1.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, float("nan"), 1.0)):
        with pytest.raises(ConfigError, match="one number a set"):
            mixed(weights)
        with pytest.raises(ConfigError, match="one number a set"):
            mixed((1.0, 1.0, 1.0), weights)


@pytest.fixture(scope="module")
def sets(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    for number in range(9):
        Image.new("RGB", (32, 32), (number * 20, 0, 0)).save(folder / f"{number}.png")
    games = open_frames(DataSource(), cache_folder=data_dir)
    return games, open_frames(DataSource("folder", str(folder)), cache_folder=data_dir)


def test_rows_of_several_sources_are_one(sets):
    games, flat = sets
    joined = JoinedFrames(sets)
    assert len(joined) == len(games) + 9 and joined.row_ids[0] == f"1:{games.row_ids[0]}" and joined.row_ids[-1] == "2:8.png"
    assert joined.image(len(games) + 3).getpixel((0, 0)) == (60, 0, 0) and joined.image(2).tobytes() == games.image(2).tobytes()
    assert not set(joined.episodes[: len(games)]) & set(joined.episodes[len(games) :])
    assert len(set(joined.episodes[len(games) :])) == 9  # no median of pictures that belong to no episode
    assert np.unique(joined.episodes[: len(games)]).size == np.unique(games.episodes).size
    used = np.array([1, 4, len(games) + 2])
    assert joined.identity(used) == {"kind": "mixture", "sets": [games.identity([1, 4]), flat.identity([2])]}
    assert JoinedFrames([flat, flat]).episodes is None
    parts = [pin(ImageCache(frames, 32), np.arange(len(frames))[-20:], 20) for frames in sets]
    both = joined_pinned(parts)
    assert both.row_ids[-1] == "2:8.png" and len(both) == 29 and both.foreground is not None
    assert not both.foreground[20:].any() and np.array_equal(both.foreground[:20], parts[0].foreground)
    assert joined_pinned(parts[1:]).foreground is None and both.digest != parts[0].digest


def test_a_stream_over_a_mixture_is_the_same_from_any_step_and_for_any_number_of_processes(sets):
    joined = JoinedFrames(sets)
    cache, rows = ImageCache(joined, 32), np.arange(len(joined))
    orders = [RowOrder(rows[:-9], 0), RowOrder(rows[-9:], 1)]

    def stream(**options):
        order = MixedOrder(orders, (3.0, 1.0), (1.0, 1.0), batch_size=4, total_steps=10)
        return BatchStream(cache, rows, batch_size=4, seed=0, order=order, num_workers=1, **options)

    whole = stream()
    wanted = [whole.batch(step) for step in range(10)]
    batches = stream().iterate(6)
    for step in range(6, 10):
        batch = next(batches)
        assert batch.row_ids == wanted[step].row_ids and bool((batch.images_BCHW == wanted[step].images_BCHW).all())
    batches.close()
    shared = [stream(rank=rank, world_size=2) for rank in range(2)]
    assert [tuple(row for one in shared for row in one.batch(step).row_ids) for step in range(10)] == [b.row_ids for b in wanted]
    assert not whole.brings_all_once


def test_contrast_tells_flat_images_from_rich_ones():
    flat, half = np.full((8, 8, 3), 90, dtype=np.uint8), np.zeros((8, 8, 3), dtype=np.uint8)
    half[:, :4] = 255
    everywhere = np.ones((8, 8), dtype=bool)
    assert rms_contrast(flat, everywhere) == pytest.approx(0.0, abs=1e-6)
    assert rms_contrast(half, everywhere) == pytest.approx(0.5, abs=1e-3)
    left = everywhere.copy()
    left[:, 4:] = False
    assert rms_contrast(half, left) == pytest.approx(0.0, abs=1e-6) and rms_contrast(half, ~everywhere) == 0.0
    assert drawn_by(np.array([1.0, 2.0, 3.0]), 2.0).tolist() == [0.25, 1.0, 2.25]
    assert (
        drawn_by(np.array([0.0, 1e6] + [0.0] * 98), 1.0).tolist()[:2] == [1 / 20, 20.0]
        and (drawn_by(np.zeros(3), 1.0) == 1).all()
    )
    assert {name: places.tolist() for name, places in slice_rows(np.array([5.0, 1.0, 3.0, 4.0, 2.0, 0.0])).items()} == {
        "low": [1, 5], "middle": [2, 4], "high": [0, 3],
    }  # fmt: skip
    assert slice_rows(np.array([1.0, 2.0])) == {}
