"""Schedules: one pruning in rounds of prune and retrain. Arithmetic on specs; no torch.

After round i of n, of what a rate r removes in all:

    one-shot   r, in one round
    linear     r i / n
    cubic      r (1 - (1 - i / n)^3): most of it early, while much is left to recover with (Zhu and Gupta, arXiv 1710.01878)
    iterative  1 - (1 - r)^(i / n): each round the same share of what is left

Whole units are masked while a linear or cubic schedule runs, each round at the share so far (of the first parent's units, which
masks do not change), and cut once, by the last round; an iterative one cuts in every round. Single weights are masked anyway, each
round at its share of those that are left. Rates of sites follow the same formula.

The steps of the retraining are the total: each round has an equal part of them, the last one the remainder. Epochs keep their
length as nearly as their number divides the round's steps. Each round begins its learning-rate schedule anew and warms up for as
many epochs as were given, or for half of its own where that is fewer; and it draws images by another seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.checks import changed
from core.errors import CoreError
from core.specs import LEAST_RATE, MOST_ROUNDS, STRUCTURED_METHODS, PruneSpec, RetrainSpec, ScheduleSpec


@dataclass(frozen=True)
class Round:
    """A pruning and the retraining after it."""

    prune: PruneSpec
    retrain: RetrainSpec
    label: str = ""
    """What its models' names say besides, such as `-cubic-1of4`."""


def removed(schedule: str, rate: float, rounds: int) -> list[float]:
    """Share that is gone after each round; the last is `rate` exactly."""
    if schedule == "one-shot":
        return [rate]
    parts = [i / rounds for i in range(1, rounds)]
    shares = {
        "linear": [rate * part for part in parts],
        "cubic": [rate * (1 - (1 - part) ** 3) for part in parts],
        "iterative": [1 - (1 - rate) ** part for part in parts],
    }[schedule]
    return [*shares, rate]


def of_what_is_left(gone: list[float]) -> list[float]:
    """The share that each round takes of what the one before it left."""
    before = [0.0, *gone[:-1]]
    return [1 - (1 - now) / (1 - then) for then, now in zip(before, gone, strict=True)]


def rates(schedule: str, rate: float, rounds: int, *, whole_units: bool) -> list[float]:
    """What each round asks for: of the first parent's units where masks keep them, else of what is left."""
    gone = removed(schedule, rate, rounds)
    asked = gone if whole_units and schedule in ("linear", "cubic") else of_what_is_left(gone)
    return [round(share, 12) for share in asked]  # a tenth, not 0.09999999999999998


def rounds_of(prune: PruneSpec, retrain: RetrainSpec, plan: ScheduleSpec) -> list[Round]:
    """The rounds of a schedule whose last model has lost what `prune` asks for.

    Raises CoreError where a round would prune less than is legal, where there are fewer steps than rounds, and for a pruning that
    is no matter of degree (2:4, a threshold).
    """
    if plan.schedule == "one-shot":
        return [Round(prune, retrain)]
    if prune.method == "two_four" or prune.rate is None or prune.plan is not None:
        what = "2:4" if prune.method == "two_four" else "a threshold" if prune.rate is None else "a plan"
        raise CoreError(f"A schedule divides a rate, and {what} has none.", code="no_rate", given=plan.schedule, legal="one-shot")
    if prune.apply != "cut":
        raise CoreError(
            "A schedule itself says when units are masked and when they are cut.", code="apply", given=prune.apply, legal="cut"
        )
    whole = prune.method in STRUCTURED_METHODS
    asked = rates(plan.schedule, prune.rate, plan.rounds, whole_units=whole)
    if min(asked) < LEAST_RATE:
        able = [n for n in range(2, MOST_ROUNDS + 1) if min(rates(plan.schedule, prune.rate, n, whole_units=whole)) >= LEAST_RATE]
        raise CoreError(
            f"{plan.rounds} rounds are too many for a rate of {prune.rate}: round {asked.index(min(asked)) + 1} would prune "
            f"{min(asked):.3f}, and a pruning takes {LEAST_RATE} at least.",
            code="rounds",
            given=plan.rounds,
            legal=f"{'2' if able == [2] else f'2 to {max(able)}'} rounds, or one-shot" if able else "one-shot",
            next="Ask for fewer rounds, a higher rate or another schedule.",
        )
    sites = {name: rates(plan.schedule, rate, plan.rounds, whole_units=whole) for name, rate in prune.site_rates.items()}
    trained = divided(retrain, plan.rounds)
    made = []
    for place, rate in enumerate(asked):
        masked = whole and plan.schedule != "iterative" and place < plan.rounds - 1
        values = {"rate": rate, "site_rates": {name: own[place] for name, own in sites.items()}}
        spec = changed(prune, **values, apply="mask" if masked else "cut")
        made.append(Round(spec, trained[place], f"-{plan.schedule}-{place + 1}of{plan.rounds}"))
    return made


def divided(retrain: RetrainSpec, rounds: int) -> list[RetrainSpec]:
    """The training in so many parts, the last with the remaining steps; raises CoreError where a part would have none."""
    total = retrain.total_steps
    if total < rounds:
        raise CoreError(
            f"{total} steps of retraining are too few for {rounds} rounds.", code="steps", given=total, legal=f"{rounds} or more"
        )
    steps = [total // rounds] * (rounds - 1) + [total - total // rounds * (rounds - 1)]
    return [changed(with_steps(retrain, own), seed=retrain.seed + place) for place, own in enumerate(steps)]


def with_steps(retrain: RetrainSpec, steps: int) -> RetrainSpec:
    """The same training over exactly `steps` steps: epochs as near the given length as divides them, the warm-up half of them at most."""
    small = [n for n in range(1, math.isqrt(steps) + 1) if steps % n == 0]
    divisors = [*small, *(steps // n for n in small)]
    epochs = min(divisors, key=lambda n: abs(math.log(steps / n / retrain.steps_per_epoch)))
    values = {"n_epochs": epochs, "steps_per_epoch": steps // epochs}
    return changed(retrain, **values, warmup_epochs=min(retrain.warmup_epochs, epochs // 2))
