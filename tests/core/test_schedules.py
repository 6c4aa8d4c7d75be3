"""Schedules: what each round removes and trains, in numbers; what cannot be is told before anything is submitted."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CoreError
from core.schedules import divided, of_what_is_left, rates, removed, rounds_of, with_steps
from core.specs import PruneSpec, RetrainSpec, ScheduleSpec

KINDS = ["cubic", "linear", "iterative", "one-shot"]
TRAINING = RetrainSpec(n_epochs=24, steps_per_epoch=25, warmup_epochs=5)


def test_the_formulas_by_hand():
    assert removed("linear", 0.6, 3) == pytest.approx([0.2, 0.4, 0.6])
    assert removed("cubic", 0.8, 2) == pytest.approx([0.7, 0.8])
    assert removed("cubic", 0.5, 4) == pytest.approx([0.2890625, 0.4375, 0.4921875, 0.5])
    assert removed("iterative", 0.75, 2) == pytest.approx([0.5, 0.75])
    assert removed("one-shot", 0.5, 4) == [0.5]
    assert rates("linear", 0.3, 3, whole_units=True) == [0.1, 0.2, 0.3]  # not 0.09999999999999999, which is illegal
    assert rates("linear", 0.75, 3, whole_units=False) == pytest.approx([0.25, 1 / 3, 0.5])
    assert rates("iterative", 0.75, 2, whole_units=True) == [0.5, 0.5]


@given(kind=st.sampled_from(KINDS), rate=st.integers(10, 90).map(lambda n: n / 100), rounds=st.integers(2, 20))
def test_every_schedule_ends_at_its_rate(kind, rate, rounds):
    gone = removed(kind, rate, rounds)
    assert gone[-1] == rate and gone == sorted(gone) and len(gone) == (1 if kind == "one-shot" else rounds)
    assert math.prod(1 - share for share in of_what_is_left(gone)) == pytest.approx(1 - rate)
    for whole in (True, False):
        asked = rates(kind, rate, rounds, whole_units=whole)
        left = 1 - asked[-1] if whole and kind in ("linear", "cubic") else math.prod(1 - share for share in asked)
        assert left == pytest.approx(1 - rate)


@given(
    epochs=st.integers(1, 40), length=st.integers(1, 60), warmup=st.integers(0, 50), rounds=st.integers(1, 20),
)  # fmt: skip
def test_the_steps_of_all_rounds_are_those_of_the_training(epochs, length, warmup, rounds):
    whole = RetrainSpec(n_epochs=epochs, steps_per_epoch=length, warmup_epochs=warmup, seed=7)
    if whole.total_steps < rounds:
        with pytest.raises(CoreError, match="too few"):
            divided(whole, rounds)
        return
    parts = divided(whole, rounds)
    steps = [part.total_steps for part in parts]
    assert sum(steps) == whole.total_steps and len(set(steps[:-1])) <= 1 and 0 <= steps[-1] - steps[0] < rounds
    assert all(part.warmup_epochs <= warmup and part.warmup_epochs * 2 <= part.n_epochs for part in parts)
    assert [part.seed for part in parts] == list(range(7, 7 + rounds))


def test_epochs_keep_their_length_where_it_divides():
    assert {(part.n_epochs, part.steps_per_epoch, part.warmup_epochs) for part in divided(TRAINING, 4)} == {(6, 25, 3)}
    odd = with_steps(TRAINING, 85)
    assert (odd.n_epochs, odd.steps_per_epoch) == (5, 17)
    prime = with_steps(TRAINING, 97)
    assert (prime.n_epochs, prime.steps_per_epoch, prime.warmup_epochs) == (1, 97, 0)


def test_units_are_masked_until_the_last_round_and_weights_by_shares():
    prune = PruneSpec(rate=0.6, site_rates={"mid": 0.3, "heads": 0.0})
    made = rounds_of(prune, TRAINING, ScheduleSpec(schedule="linear", rounds=3))
    assert [(each.prune.rate, each.prune.apply) for each in made] == [(0.2, "mask"), (0.4, "mask"), (0.6, "cut")]
    assert [each.prune.site_rates for each in made] == [{"mid": rate, "heads": 0.0} for rate in (0.1, 0.2, 0.3)]
    assert [each.label for each in made] == ["-linear-1of3", "-linear-2of3", "-linear-3of3"]
    iterative = rounds_of(PruneSpec(rate=0.75, site_rates={"mid": 0.36}), TRAINING, ScheduleSpec(schedule="iterative", rounds=2))
    assert [(each.prune.rate, each.prune.apply, each.prune.site_rates) for each in iterative] == [(0.5, "cut", {"mid": 0.2})] * 2
    sparse = rounds_of(PruneSpec(method="global_magnitude", rate=0.75), TRAINING, ScheduleSpec(schedule="linear", rounds=3))
    assert [each.prune.rate for each in sparse] == pytest.approx([0.25, 1 / 3, 0.5], abs=1e-11)
    (once,) = rounds_of(PruneSpec(method="two_four"), TRAINING, ScheduleSpec(schedule="one-shot"))
    assert once.prune.method == "two_four" and once.retrain == TRAINING


@pytest.mark.parametrize(
    ("prune", "schedule", "rounds", "words", "legal"),
    [
        ({"rate": 0.3}, "linear", 4, "round 1 would prune 0.075", "2 to 3 rounds"),
        ({"rate": 0.5}, "iterative", 7, "round 1 would prune 0.094", "2 to 6 rounds"),
        ({"rate": 0.1}, "cubic", 2, "round 1 would prune 0.087", "one-shot"),
        ({"rate": 0.5, "method": "global_magnitude"}, "cubic", 4, "round 4 would prune 0.015", "2 rounds"),
        ({"method": "two_four"}, "linear", 2, "2:4 has none", "one-shot"),
        ({"method": "global_magnitude", "rate": None, "threshold": 0.1}, "cubic", 2, "a threshold has none", "one-shot"),
        ({"apply": "mask"}, "linear", 2, "when units are masked", "cut"),
    ],
)
def test_what_cannot_be_divided_is_told(prune, schedule, rounds, words, legal):
    with pytest.raises(CoreError, match=words) as caught:
        rounds_of(PruneSpec.model_validate(prune), TRAINING, ScheduleSpec(schedule=schedule, rounds=rounds))
    assert legal in caught.value.legal


def test_a_masked_stream_needs_exact_norms_here_too():
    with pytest.raises(CoreError, match="needs stream_norms exact"):
        rounds_of(PruneSpec(kinds=("mid", "stream")), TRAINING, ScheduleSpec(rounds=2))
    assert rounds_of(PruneSpec(kinds=("mid", "stream")), TRAINING, ScheduleSpec(schedule="iterative", rounds=2))
