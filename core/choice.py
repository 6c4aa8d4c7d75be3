"""Which model to keep: the Pareto front over any figures, and a weighted ranking. Pure arithmetic, free of torch and of the store.

A direction is True where more is better, False where less is. What lacks one of the figures is neither on the front nor ranked, and is
named: a missing figure is no zero. A figure where neither direction is better (sparsity is a means) cannot be chosen by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import CoreError

SAME = 1e-12
"""Scores closer than this are equal but for rounding."""


@dataclass(frozen=True)
class Front:
    """Who is not beaten in everything: ids of the `best`, each of the others under one that beats it, and who lacks a figure."""

    best: tuple[str, ...]
    beaten_by: Mapping[str, str]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Ranked:
    """One model's place: `score` in [0, 1], and of each figure its normalised value in [0, 1] (1 is the best of those ranked).

    Models of one score share a place, and the places behind them stay free.
    """

    id: str
    place: int
    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Ranking:
    """Models from the best score to the worst, and which figures those left out lack."""

    ranked: tuple[Ranked, ...]
    left_out: Mapping[str, tuple[str, ...]]


def dominates(first: Sequence[float], second: Sequence[float], more_is_better: Sequence[bool]) -> bool:
    """Whether `first` is nowhere worse than `second` and somewhere better."""
    gains = [(a - b) if more else (b - a) for a, b, more in zip(first, second, more_is_better, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def pareto_front(points: Mapping[str, Sequence[float | None]], more_is_better: Sequence[bool]) -> Front:
    """The Pareto front of points with one value for each direction; equal points stand on it together.

    The best are in the order of the first value, the cheapest or smallest first.
    """
    whole = {name: values for name, given in points.items() if (values := _whole(given)) is not None}
    best: list[str] = []
    beaten: dict[str, str] = {}
    for name, own in whole.items():
        winner = next((other for other, theirs in whole.items() if dominates(theirs, own, more_is_better)), None)
        if winner is None:
            best.append(name)
        else:
            beaten[name] = winner
    for name, winner in beaten.items():
        # Whoever is beaten is beaten by one of the front: follow the chain to it.
        while winner in beaten:
            winner = beaten[winner]
        beaten[name] = winner
    best.sort(key=lambda name: whole[name][0])
    return Front(tuple(best), beaten, tuple(name for name in points if name not in whole))


def _whole(values: Sequence[float | None]) -> list[float] | None:
    """The values where none is missing."""
    found = [value for value in values if value is not None and value == value]
    return found if len(found) == len(values) else None


def normalised(values: Mapping[str, float], more_is_better: bool) -> dict[str, float]:
    """Values between the worst (0) and the best (1) of them; where all are alike, each is 1: nothing tells them apart."""
    low, high = min(values.values()), max(values.values())
    if high == low:
        return dict.fromkeys(values, 1.0)
    return {name: (value - low if more_is_better else high - value) / (high - low) for name, value in values.items()}


def ranking(
    figures: Mapping[str, Mapping[str, float | None]],
    directions: Mapping[str, bool | None],
    weights: Mapping[str, float],
) -> Ranking:
    """Models by the weighted mean of their normalised figures; of equal ones by id, so that the order is always the same.

    `figures` is model -> figure -> value, `directions` figure -> whether more is better, `weights` figure -> its weight, 0 for a figure
    that does not count. Raises CoreError where no weight is above 0, one is negative, or a figure has no better direction.
    """
    for key, weight in weights.items():
        if key not in directions:
            raise CoreError(f"There is no figure {key!r}.", code="metric", given=key, legal=sorted(directions))
        if not 0 <= weight < float("inf"):
            raise CoreError(f"The weight of {key} must be 0 or more.", code="weight", given=weight, legal="0 or more")
        if weight > 0 and directions[key] is None:
            raise CoreError(
                f"Models cannot be ranked by {key}: neither more nor less of it is better.",
                code="metric", given=key, legal=[name for name, direction in directions.items() if direction is not None],
            )  # fmt: skip
    used = {key: weight for key, weight in weights.items() if weight > 0}
    if not used:
        raise CoreError("No figure has a weight.", code="weight", given=dict(weights), legal="at least one weight above 0")
    lacking = {name: tuple(key for key in used if _whole([own.get(key)]) is None) for name, own in figures.items()}
    whole = [name for name, missing in lacking.items() if not missing]
    left_out = {name: missing for name, missing in lacking.items() if missing}
    if not whole:
        return Ranking((), left_out)
    parts: dict[str, dict[str, float]] = {name: {} for name in whole}
    for key in used:
        values = {name: float(figures[name][key]) for name in whole}  # type: ignore[arg-type]
        for name, value in normalised(values, bool(directions[key])).items():
            parts[name][key] = value
    total = sum(used.values())
    scores = {name: sum(used[key] * parts[name][key] for key in used) / total for name in whole}
    place = {name: 1 + sum(other > score + SAME for other in scores.values()) for name, score in scores.items()}
    order = sorted(whole, key=lambda name: (place[name], name))
    return Ranking(tuple(Ranked(name, place[name], scores[name], parts[name]) for name in order), left_out)
