"""Intervals and tests against scipy, against cases computed by hand, and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from core.statistics import EXACT_BITS, LEAST_IMAGES, difference, holm, interval, sign_flip_p

RNG = np.random.default_rng(3)
SKEWED = RNG.lognormal(size=64)


def test_the_interval_is_scipys_bca():
    for values in (SKEWED, RNG.normal(36, 2, 200), RNG.normal(size=LEAST_IMAGES)):
        theirs = scipy.stats.bootstrap(
            (values,), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(0)
        ).confidence_interval
        ours = interval(values)
        width = theirs.high - theirs.low
        assert ours.mean == pytest.approx(values.mean())
        assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
        assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    plain = np.quantile(RNG.choice(SKEWED, (4000, 64)).mean(1), 0.975)
    assert interval(SKEWED).high > plain, "the skew is corrected for"


def test_the_interval_covers_as_often_as_it_says():
    hits = sum((found.low <= 5.0 <= found.high) for found in (interval(RNG.normal(5.0, 1.0, 40)) for _ in range(300)))
    assert 0.90 <= hits / 300 <= 0.98


@pytest.mark.parametrize("count", [LEAST_IMAGES, 11, EXACT_BITS])
def test_few_images_are_tested_exactly_as_scipy_does(count):
    values = RNG.normal(0.4, 1.0, count)
    theirs = scipy.stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False)
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_many_images_agree_with_scipys_paired_t_test():
    for shift in (0.0, 0.15, 0.3):
        a = RNG.normal(size=64)
        b = a + RNG.normal(shift, 0.7, 64)
        found, theirs = difference(b, a), scipy.stats.ttest_rel(b, a)
        assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)
        assert found.effect_size == pytest.approx(theirs.statistic / math.sqrt(64))


def test_a_case_by_hand():
    # Eight images, all better by different amounts: only the flip of none and of all is as extreme, so p = 2 / 2^8.
    a = [30.0, 31.0, 29.0, 35.0, 33.0, 32.0, 34.0, 36.0]
    gains = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    found = difference([x + g for x, g in zip(a, gains, strict=True)], a)
    assert found.p_value == 2 / 256 and found.mean == pytest.approx(0.45) and found.shown
    assert found.effect_size == pytest.approx(0.45 / np.std(gains, ddof=1))
    assert found.low > 0.25 and found.high < 0.65


def test_none_shown_where_there_is_none():
    same = difference(SKEWED, SKEWED)
    assert (same.mean, same.low, same.high, same.p_value, same.effect_size) == (0, 0, 0, 1.0, 0.0) and not same.shown
    swapped = np.tile([1.0, -1.0], 16)
    balanced = difference(SKEWED[:32] + swapped, SKEWED[:32])
    assert not balanced.shown and balanced.p_value > 0.5
    always = difference(np.full(20, 2.0), np.full(20, 1.5))
    assert always.shown and always.effect_size == math.inf and always.low == always.high == 0.5


def test_a_false_find_is_as_rare_as_it_says():
    found = sum(difference(RNG.normal(size=24), RNG.normal(size=24)).shown for _ in range(400))
    assert found / 400 < 0.08


def test_too_few_images_have_no_interval_and_missing_ones_are_left_out():
    few = interval([1.0, 2.0, math.nan, 3.0])
    assert (few.mean, few.low, few.high, few.count) == (2.0, None, None, 3)
    pair = difference([1.0] * 7, [2.0] * 7)
    assert pair.mean == -1.0 and pair.p_value is None and not pair.shown
    with_gaps = np.where(np.arange(64) % 8 == 0, np.nan, SKEWED)
    assert difference(with_gaps, SKEWED - 1).count == 56
    for call in (lambda: interval([math.nan]), lambda: difference([1.0], [1.0, 2.0]), lambda: difference([math.nan], [1.0])):
        with pytest.raises(ValueError, match=r"image|pairs"):
            call()


def test_holm_by_hand():
    # 0.01 x 3, then 0.02 x 2, then 0.04 x 1, never falling; a fourth family member at 0.9 stays.
    assert holm({"b": 0.02, "a": 0.01, "c": 0.04}) == pytest.approx({"b": 0.04, "a": 0.03, "c": 0.04})
    assert holm({"a": 0.01, "b": 0.9}) == pytest.approx({"a": 0.02, "b": 0.9})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0} and holm({}) == {}
