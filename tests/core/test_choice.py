"""The Pareto front and the ranking, against cases computed by hand and against the definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from core.choice import dominates, normalised, pareto_front, ranking
from core.compare import METRICS, relative_change
from core.errors import CoreError

# (decode ms, PSNR dB): less and more are better. By hand: c is beaten by b (faster and better), e equals b.
MODELS = {
    "a": (10.0, 30.0),
    "b": (20.0, 35.0),
    "c": (25.0, 34.0),
    "d": (40.0, 36.0),
    "e": (20.0, 35.0),
    "f": (41.0, 33.0),
    "g": (None, 40.0),
}
DIRECTIONS = (False, True)


def test_the_front_is_the_one_computed_by_hand():
    front = pareto_front(MODELS, DIRECTIONS)
    assert front.best == ("a", "b", "e", "d")
    assert set(front.beaten_by) == {"c", "f"} and front.beaten_by["c"] == "b" and front.beaten_by["f"] in ("b", "d", "e")
    assert front.left_out == ("g",), "a missing figure is no zero"
    # Turned round, slow and poor are good: d is beaten by f, which is slower and worse; b, c and e by f too.
    assert pareto_front(MODELS, (True, False)).best == ("a", "f")


def test_one_figure_has_one_winner_and_nothing_has_none():
    assert pareto_front({"a": (1.0,), "b": (2.0,)}, (True,)).best == ("b",)
    assert pareto_front({}, (True,)).best == ()
    assert pareto_front({"a": (math.nan, 1.0)}, (True, True)).left_out == ("a",)


points = some.dictionaries(
    some.text("abcdefgh", min_size=1, max_size=2), some.tuples(*[some.integers(0, 6)] * 3), min_size=1, max_size=20
)


@given(points, some.tuples(*[some.booleans()] * 3))
def test_nobody_beats_the_front_and_the_front_beats_the_rest(drawn, directions):
    front = pareto_front(drawn, directions)
    assert set(front.best) | set(front.beaten_by) == set(drawn) and not set(front.best) & set(front.beaten_by)
    for name in front.best:
        assert not any(dominates(other, drawn[name], directions) for other in drawn.values())
    for name, winner in front.beaten_by.items():
        assert winner in front.best and dominates(drawn[winner], drawn[name], directions)


FIGURES = {
    "small": {"psnr_db": 30.0, "decode_ms": 10.0},
    "middle": {"psnr_db": 35.0, "decode_ms": 15.0},
    "large": {"psnr_db": 40.0, "decode_ms": 30.0},
    "untimed": {"psnr_db": 50.0, "decode_ms": None},
}
BETTER = {"psnr_db": True, "decode_ms": False, "sparsity": None}


def test_the_ranking_is_the_one_computed_by_hand():
    # PSNR: 0, 0.5, 1; latency turned: 1, 0.75, 0. Weights 1 : 3 make (0 + 3)/4, (0.5 + 2.25)/4, (1 + 0)/4.
    found = ranking(FIGURES, BETTER, {"psnr_db": 1, "decode_ms": 3})
    assert [(one.id, one.score) for one in found.ranked] == [("small", 0.75), ("middle", 0.6875), ("large", 0.25)]
    assert found.ranked[1].parts == {"psnr_db": 0.5, "decode_ms": 0.75}
    assert found.left_out == {"untimed": ("decode_ms",)}, "50 dB would have moved everybody's PSNR, had it been counted"
    only = ranking(FIGURES, BETTER, {"psnr_db": 2, "decode_ms": 0})
    assert [one.id for one in only.ranked] == ["untimed", "large", "middle", "small"]


def test_weights_count_relative_to_each_other_and_ties_keep_their_order():
    one, ten = (ranking(FIGURES, BETTER, {"psnr_db": k, "decode_ms": 3 * k}) for k in (1, 10))
    assert [(r.id, pytest.approx(r.score)) for r in one.ranked] == [(r.id, r.score) for r in ten.ranked]
    alike = ranking({"b": {"x": 1.0}, "a": {"x": 1.0}}, {"x": True}, {"x": 1})
    assert [(r.id, r.place, r.score) for r in alike.ranked] == [("a", 1, 1.0), ("b", 1, 1.0)]
    assert normalised({"a": 2.0, "b": 2.0}, False) == {"a": 1.0, "b": 1.0}
    assert ranking({"a": {}}, {"x": True}, {"x": 1}).ranked == ()


@pytest.mark.parametrize("weights", [{}, {"psnr_db": 0}, {"psnr_db": -1}, {"psnr_db": math.inf}, {"sparsity": 1}, {"beauty": 1}])
def test_what_cannot_be_ranked_by_is_refused(weights):
    with pytest.raises(CoreError) as caught:
        ranking(FIGURES, BETTER, weights)
    assert caught.value.legal


def test_a_change_of_a_negative_figure_has_the_sign_of_the_difference():
    ssim = METRICS["ssim"]
    assert relative_change(ssim, -0.02, -0.01) == pytest.approx(-1.0)  # less similar, whatever the quotient says
    assert relative_change(ssim, 0.01, -0.01) == pytest.approx(2.0)
    assert relative_change(ssim, 0.4, 0.5) == pytest.approx(-0.2)
