"""Which images are drawn: weights hold in each epoch, and every draw is a function of seed and place alone. How images fared."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dcaecore import BatchStream, ImageLosses, latest_checkpoint, train
from dcaecore.checkpoints import load_checkpoint
from dcaecore.latents import pays
from dcaecore.sampling import RowOrder
from tests.dcaecore.test_trainer_resume import SETTINGS, Stop, setting_up


def test_rows_without_weights_are_permutations_of_numpys_generator():
    rows = np.array([3, 5, 7, 11, 13])
    order = RowOrder(rows, seed=4)
    for epoch in range(3):
        expected = np.random.default_rng([4, epoch]).permutation(rows)
        assert [order.row(epoch * 5 + place) for place in range(5)] == expected.tolist()
    assert RowOrder(rows, 4, np.full(5, 2.0)).epoch(1).tolist() == order.epoch(1).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_each_epoch_holds_each_row_as_often_as_its_weight_says(seed):
    rows, chance = np.arange(100, 150), np.random.default_rng(seed)
    weights = chance.choice([0.01, 0.5, 1.0, 4.0, 20.0], size=50)
    order = RowOrder(rows, seed, weights)
    expected = 50 * weights / weights.sum()
    total = np.zeros(50)
    for epoch in range(40):
        drawn = order.epoch(epoch)
        counts = np.array([Counter(drawn.tolist())[int(row)] for row in rows])
        assert len(drawn) == 50 and (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
        total += counts
    # The mean over epochs is the weight: within four standard errors of a rounding, which is at most half a draw.
    assert np.abs(total / 40 - expected).max() < 4 * 0.5 / np.sqrt(40)
    again = RowOrder(rows, seed, weights)
    places = [170, 3, 99, 1234, 3]
    assert [again.row(place) for place in places] == [order.row(place) for place in places]
    assert order.epoch(0).tolist() != order.epoch(1).tolist() != sorted(order.epoch(1).tolist())


def test_latents_are_not_kept_where_rows_come_unevenly(data_dir):
    _, stream, _ = setting_up(data_dir)
    weights = np.ones(len(stream.rows))
    weights[0] = 3.0
    uneven = BatchStream(stream.cache, stream.rows, batch_size=2, seed=5, order=RowOrder(stream.rows, 5, weights))
    assert pays(stream, 1000, 1) and not pays(uneven, 1000, 1)


def test_losses_of_images_are_first_last_and_running_mean():
    found = ImageLosses(5)
    found.observe(1, [3, 1], [0.5, 1.0])
    found.observe(2, [3], [0.25])
    found.observe(7, [3, 3], [0.25, 1.0])
    a = found.arrays
    mean = 0.5
    for loss in (0.25, 0.25, 1.0):
        mean = 0.7 * mean + 0.3 * loss
    assert [a[name][3] for name in ("first", "last", "step", "count")] == [0.5, 1.0, 7, 4]
    assert a["mean"][3] == pytest.approx(mean) and a["mean"][1] == 1.0
    assert a["count"].tolist() == [0, 1, 0, 4, 0] and sum(values.nbytes for values in a.values()) == 20 * 5
    other = ImageLosses(5)
    other.restore(a)
    other.observe(8, [0], [1.0])
    assert a["count"][0] == 0 and other.arrays["mean"][3] == a["mean"][3]
    empty = ImageLosses(5)
    empty.restore({})
    assert not empty.arrays["count"].any()


def test_a_training_tells_each_images_loss_and_a_resumed_one_the_same(data_dir, tmp_path):
    settings = replace(SETTINGS, eval_interval=4)
    told: dict[str, ImageLosses] = {}

    class Keeps(Stop):
        def __init__(self, name, at=10**6):
            super().__init__(at)
            self.name, self.losses = name, {}

        def on_step(self, step, metrics):
            self.losses[step] = metrics["loss_l1"]

        def on_image_losses(self, step, losses):
            told[self.name] = losses

    model, stream, pinned = setting_up(data_dir)
    whole = Keeps("whole")
    train(model, replace(settings, foreground_weight=1.0), stream, pinned, callbacks=whole)
    losses = told["whole"].arrays
    assert losses["count"].sum() == 12 * 2
    for step in (1, 12):  # a batch's loss is the mean of its images'
        rows = stream.rows_of(step - 1)
        figure = "first" if step == 1 else "last"
        assert np.mean([losses[figure][row] for row in rows]) == pytest.approx(whole.losses[step], rel=1e-5)
        assert all(losses["step"][row] == step for row in rows if step == 12)
    model, stream, pinned = setting_up(data_dir)
    train(model, settings, stream, pinned, callbacks=Keeps("weighted"))
    for at in (5, 10**6):
        model, stream, pinned = setting_up(data_dir)
        train(
            model, settings, stream, pinned, callbacks=Keeps("resumed", at), folder=tmp_path,
            resume_from=latest_checkpoint(tmp_path),
        )  # fmt: skip
        if at == 5:
            assert int(load_checkpoint(latest_checkpoint(tmp_path)).images["count"].sum()) == 10
    assert all(np.array_equal(values, told["resumed"].arrays[name]) for name, values in told["weighted"].arrays.items())
