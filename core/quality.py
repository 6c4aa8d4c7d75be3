"""Quality with its intervals, and every difference to a reference paired by image, from the stored figures of each image. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import store.scores as scores
from core.compare import METRICS, Comparison, Metric
from core.errors import CoreError
from core.statistics import CONFIDENCE, LEAST_IMAGES, Difference, Interval, difference, holm, interval
from store import ImageScoresRow, Store

NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class Quality:
    """By model id and metric key: means with intervals, and differences to the reference; what could not be said is in `notes`."""

    reference: str
    intervals: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Difference]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values; each difference with its verdict in words."""
        return {
            "reference": self.reference,
            "confidence": CONFIDENCE,
            "intervals": {ref: {key: asdict(one) for key, one in own.items()} for ref, own in self.intervals.items()},
            "differences": {
                ref: {key: {**asdict(one), "verdict": verdict(METRICS[key], one)} for key, one in own.items()}
                for ref, own in self.differences.items()
            },
            "notes": self.notes,
        }


def quality(store: Store, comparison: Comparison, reference: str | None = None) -> Quality:
    """Intervals and paired differences of a comparison's models, on the images of its protocol.

    `reference` is one of its models (None: of those evaluated the first baseline, else the first). p-values of one figure are corrected
    for the number of models that are held against the reference (Holm). Raises CoreError for a reference that is not compared.
    """
    ids = [model.id for model in comparison.models]
    chosen = reference_of(comparison, reference)
    if comparison.protocol is None:
        return Quality(chosen, {}, {}, [])
    number = scores.protocol_id(comparison.protocol)
    found = {
        ref: row for ref in ids if (row := scores.image_scores(store, ref, comparison.split, protocol_id=number)) is not None
    }
    notes: list[str] = []
    intervals = {ref: _intervals(row) for ref, row in found.items()}
    differences: dict[str, dict[str, Difference]] = {}
    for ref, row in found.items():
        if ref != chosen and chosen in found:
            differences[ref] = _differences(row, found[chosen])
    if chosen not in found and len(ids) > 1:
        notes.append("The reference was not evaluated on these images, so no difference is paired. Validate it.")
    counts = [one.count for own in intervals.values() for one in own.values()]
    if counts and min(counts) < LEAST_IMAGES:
        few = sorted({METRICS[key].title for own in intervals.values() for key, one in own.items() if one.low is None})
        if few:
            notes.append(
                f"Too few images for an interval or a test of {', '.join(few)}: {min(counts)} of the {LEAST_IMAGES} that they need."
            )
    return Quality(chosen, intervals, _corrected(differences), notes)


def reference_of(comparison: Comparison, reference: str | None = None) -> str:
    """The model that differences are to, as `quality` says; raises CoreError for one that is not compared."""
    ids = [model.id for model in comparison.models]
    judged = [m for m in comparison.models if comparison.figures[m.id]["psnr_db"].value is not None] or comparison.models
    chosen = reference or next((m.id for m in judged if m.parent_id is None), judged[0].id)
    if chosen not in ids:
        raise CoreError("The reference must be one of the models compared.", code="reference", given=chosen, legal=ids)
    return chosen


# A page asks for the same figures in each of its sections and at each rerun; a bootstrap takes milliseconds.
@lru_cache(maxsize=4096)
def _interval(values: tuple[float, ...]) -> Interval:
    return interval(values)


@lru_cache(maxsize=4096)
def _difference(pairs: tuple[tuple[float, float], ...]) -> Difference:
    return difference(*zip(*pairs, strict=True))


def _judged(row: ImageScoresRow) -> list[str]:
    """The figures that are shown, in their order."""
    return [key for key in METRICS if any(value == value for value in row.values.get(key, ()))]


def _intervals(row: ImageScoresRow) -> dict[str, Interval]:
    return {key: _interval(tuple(row.values[key])) for key in _judged(row)}


def _differences(row: ImageScoresRow, reference: ImageScoresRow) -> dict[str, Difference]:
    """Of each figure that both have; paired by row id, whatever the order."""
    place = {row_id: index for index, row_id in enumerate(reference.row_ids)}
    shared = [(own, place[row_id]) for own, row_id in enumerate(row.row_ids) if row_id in place]
    made = {}
    for key in _judged(row):
        other = reference.values.get(key)
        if other is None:
            continue
        pairs = tuple((row.values[key][own], other[theirs]) for own, theirs in shared)
        if any(a == a and b == b for a, b in pairs):
            made[key] = _difference(pairs)
    return made


def _corrected(differences: dict[str, dict[str, Difference]]) -> dict[str, dict[str, Difference]]:
    """p-values of each figure corrected over the models."""
    made = {ref: dict(own) for ref, own in differences.items()}
    for key in METRICS:
        raw = {ref: p for ref, own in made.items() if key in own and (p := own[key].p_value) is not None}
        for ref, p in holm(raw).items():
            made[ref][key] = replace(made[ref][key], p_value=p)
    return made


def interval_text(metric: Metric, found: Interval) -> str:
    """The mean with its interval, in the metric's unit."""
    text = metric.text(found.mean)
    return text if found.low is None else f"{text} [{_plain(metric, found.low)}, {_plain(metric, found.high)}]"


def difference_text(metric: Metric, found: Difference) -> str:
    """The difference with interval, effect size and p, and what it means."""
    unit = "points" if metric.unit == "%" else metric.unit
    text = f"{found.mean * metric.scale:+,.{metric.decimals}f} {unit}".strip()
    if found.low is None or found.p_value is None or found.effect_size is None:
        return f"{text} ({verdict(metric, found)})"
    return (
        f"{text} [{_plain(metric, found.low, '+')}, {_plain(metric, found.high, '+')}], d {found.effect_size:+.2f}, "
        f"p {p_text(found.p_value)}: {verdict(metric, found)}"
    )


def p_text(p_value: float) -> str:
    """A p-value without false digits: what 9,999 flips can tell."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def verdict(metric: Metric, found: Difference) -> str:
    """`better`, `worse`, `different`, or that none is shown, or that there are too few images to say."""
    if found.p_value is None:
        return f"too few images: {found.count} of {LEAST_IMAGES}"
    if not found.shown:
        return NO_DIFFERENCE
    if metric.higher_is_better is None:
        return "different"
    return "better" if (found.mean > 0) == metric.higher_is_better else "worse"


def _plain(metric: Metric, value: float | None, sign: str = "") -> str:
    assert value is not None
    return f"{value * metric.scale:{sign},.{metric.decimals}f}"


def shown_metrics(found: Quality, refs: Sequence[str]) -> list[str]:
    """Figures that any of the models has, in their order."""
    return [key for key in METRICS if any(key in found.intervals.get(ref, {}) for ref in refs)]
