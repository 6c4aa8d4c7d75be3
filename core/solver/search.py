"""Rates that reach a target at the least predicted loss of quality.

Greedy by marginal worth: of all steps (one knob to a higher rate) the one that saves the most of what the target counts for each
part of quality lost is taken, until the target is reached; then every step that is not needed is taken back. Worths only fall as
other sites shrink, so each is computed again only when it comes up (lazy greedy: Minoux 1978).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from core.errors import CoreError
from core.pruning.plans import kept_count, names_of
from core.solver.latency import LatencyTable
from core.solver.sensitivity import SensitivityTable, decibels, squared_error
from dcaecore.config import DCAEConfig
from dcaecore.cost import estimate
from dcaecore.layout import Layout, sites

CostName = Literal["decode_ms", "encode_ms", "parameters", "decode_macs", "encode_macs", "weight_bytes"]
COSTS: tuple[str, ...] = get_args(CostName)
CODERS: dict[str, str] = {"decode_ms": "decoder", "encode_ms": "encoder"}
STEP = 0.125
"""Between the rates of a knob."""
TINY = 1e-12


@dataclass(frozen=True)
class Solution:
    """Rates by site (0: whole), and what they are predicted to bring in one shot, before any retraining."""

    rates: Mapping[str, float]
    layout: Layout
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class _Level:
    """One rate of a knob: what is kept of each of its sites, and the relative error that this adds, by metric."""

    rate: float
    keep: Mapping[str, int]
    added: Mapping[str, float]

    @property
    def damage(self) -> float:
        return sum(self.added.values())


def solve(
    config: DCAEConfig,
    layout: Layout,
    table: SensitivityTable,
    *,
    cost: CostName = "decode_ms",
    at_most: float | None = None,
    loss_db: float | None = None,
    latency: LatencyTable | None = None,
    locked: Sequence[str] = (),
    image_size: int = 128,
) -> Solution:
    """The least loss with `cost` at most `at_most`, or the least `cost` with at most `loss_db` lost in each metric.

    `locked` names sites, stages or kinds that stay whole. Raises CoreError where the table is of another model, where a latency is
    asked for without its table, or where the target cannot be reached: the message says how near it comes, and what a lock costs.
    """
    if (at_most is None) == (loss_db is None):
        raise CoreError("Give either the most that it may cost or the most that it may lose.", code="target")
    search = _Search(config, layout, table, cost, latency, image_size)
    before = search.figures({})
    open_knobs = search.unlocked(locked)
    if at_most is None:
        assert loss_db is not None
        chosen = search.descend(open_knobs, lambda levels: search.lost_db(levels) <= loss_db, None)
        if not chosen:
            raise CoreError(
                f"Nothing can go for {loss_db:g} dB: the cheapest step costs more.", code="unreachable", given=loss_db,
                next="Allow more loss, or measure smaller rates.",
            )  # fmt: skip
    else:
        if at_most >= before[cost]:
            raise CoreError(
                f"The model is within the target already: {cost} is {before[cost]:.4g}.", code="target", given=at_most
            )
        least = search.cost({knob: len(search.levels[knob]) - 1 for knob in open_knobs})
        if least > at_most:
            freed = search.cost({knob: len(levels) - 1 for knob, levels in search.levels.items()})
            more = f" Without the locks it could be {freed:.4g}." if locked and freed < least else ""
            raise CoreError(
                f"{cost} of {at_most:.4g} cannot be reached: with every measured rate at its highest it is {least:.4g}"
                f" (now {before[cost]:.4g}).{more}",
                code="unreachable",
                given=at_most,
                legal=f"at least {least:.4g}",
                next="Ask for less, measure higher rates, or prune further sites (kinds, part).",
            )
        chosen = search.descend(open_knobs, None, at_most)
        if search.cost(chosen) > at_most:  # no single step gains any more, all together do
            chosen = {knob: len(search.levels[knob]) - 1 for knob in open_knobs}
        chosen = search.trim(chosen, at_most)
    rates = {site: 0.0 for site in sites(config)}
    for knob, level in chosen.items():
        rates.update(dict.fromkeys(search.levels[knob][level].keep, search.levels[knob][level].rate))
    return Solution(rates, search.layout(chosen), before, search.figures(chosen))


def reach(
    config: DCAEConfig,
    layout: Layout,
    table: SensitivityTable,
    *,
    cost: CostName,
    latency: LatencyTable | None = None,
    image_size: int = 128,
) -> tuple[float, float]:
    """The cost with every measured rate at its highest, and the cost now; raises CoreError as `solve` does."""
    search = _Search(config, layout, table, cost, latency, image_size)
    return search.cost({knob: len(levels) - 1 for knob, levels in search.levels.items()}), search.cost({})


def predict(
    config: DCAEConfig,
    base: Layout,
    table: SensitivityTable,
    layout: Layout,
    *,
    latency: LatencyTable | None = None,
    image_size: int = 128,
) -> dict[str, float]:
    """The figures that `solve` would tell of a pruning from `base` to `layout`.

    Quality is left out where more of a knob went than was measured, or something else went than its knobs.
    """
    known = sites(config)
    found = _costs(config, layout, latency, image_size)
    shares = {}
    for knob, names in table.knobs.items():
        widths, kept = ([one.width(known[name]) for name in names] for one in (base, layout))
        shares[knob] = 1 - sum(kept) / sum(widths)
    others = set(known).difference(*table.knobs.values())
    measured = all(share <= table.largest_share(knob) + TINY for knob, share in shares.items())
    if not measured or any(layout.width(known[name]) != base.width(known[name]) for name in others):
        return found
    gone = {knob: share for knob, share in shares.items() if share > 0}
    added = {m: [float(table.added_error(knob, m, [share])[0]) for knob, share in gone.items()] for m in table.metrics}
    return {**found, **_quality(table, added)}


def _costs(config: DCAEConfig, layout: Layout, latency: LatencyTable | None, image_size: int) -> dict[str, float]:
    """What a model costs by arithmetic, and by the latency table where there is one."""
    cost = estimate(config, layout, image_size=image_size)
    found = {name: float(getattr(cost, name)) for name in COSTS if name not in CODERS}
    if latency is not None:
        timed = {name: coder for name, coder in CODERS.items() if coder in latency.coders}
        found |= {name: latency.predict(config, layout, coder) for name, coder in timed.items()}
    return found


def _quality(table: SensitivityTable, added: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Predicted decibels by metric, of what each pruned knob adds to the squared error."""
    return {m: decibels(squared_error(table.whole[m]) + table.joint_error(m, added[m])) for m in table.metrics}


class _Search:
    """The knobs of one model with their levels, and what any choice of levels costs."""

    def __init__(
        self, config: DCAEConfig, layout: Layout, table: SensitivityTable, cost: CostName, latency: LatencyTable | None, size: int
    ) -> None:
        self.config, self.base, self.table, self.name, self.latency = config, layout, table, cost, latency
        self.size = size
        if layout.digest() != table.layout_digest:
            raise CoreError("The sensitivity was measured on another model.", code="table_layout", next="Measure it on this one.")
        if cost in CODERS and latency is None:
            raise CoreError("A latency target needs this model's latency profile.", code="no_profile", next="Profile the model.")
        known = sites(config)
        self.levels: dict[str, list[_Level]] = {}
        for knob, names in table.knobs.items():
            widths = {name: layout.width(known[name]) for name in names}
            found: dict[tuple[int, ...], float] = {}
            for rate in np.arange(STEP, 0.9, STEP):
                keep = tuple(kept_count(width, float(rate)) for width in widths.values())
                if 1 - sum(keep) / sum(widths.values()) <= table.largest_share(knob) + TINY and keep != tuple(widths.values()):
                    found.setdefault(keep, float(rate))
            shares = [1 - sum(keep) / sum(widths.values()) for keep in found]
            added = {m: table.added_error(knob, m, shares) / squared_error(table.whole[m]) for m in table.metrics}
            self.levels[knob] = [_Level(0.0, widths, dict.fromkeys(table.metrics, 0.0))] + [
                _Level(rate, dict(zip(names, keep, strict=True)), {m: float(values[place]) for m, values in added.items()})
                for place, (keep, rate) in enumerate(found.items())
            ]

    def unlocked(self, locked: Sequence[str]) -> list[str]:
        """Knobs none of whose sites is locked; raises CoreError for a name that there is not."""
        named = {site: names_of(self.config, site) for site in sites(self.config)}
        for name in locked:
            if not any(name in names for names in named.values()):
                raise CoreError(f"There is no site, stage or kind of site {name!r}.", code="unknown_site", given=name)
        return [k for k, names in self.table.knobs.items() if not any(lock in named[site] for site in names for lock in locked)]

    def layout(self, chosen: Mapping[str, int]) -> Layout:
        keep = {
            site: range(count)
            for knob, level in chosen.items()
            for site, count in self.levels[knob][level].keep.items()
        }  # fmt: skip
        return self.base.compose(self.config, keep)

    def cost(self, chosen: Mapping[str, int]) -> float:
        """What the target counts, of the model with these levels."""
        if self.name in CODERS:
            assert self.latency is not None
            return self.latency.predict(self.config, self.layout(chosen), CODERS[self.name])
        return float(getattr(estimate(self.config, self.layout(chosen), image_size=self.size), self.name))

    def figures(self, chosen: Mapping[str, int]) -> dict[str, float]:
        """All predicted figures: exact but for latency and quality."""
        return {**_costs(self.config, self.layout(chosen), self.latency, self.size), **self.quality(chosen)}

    def quality(self, chosen: Mapping[str, int]) -> dict[str, float]:
        """Predicted decibels."""
        whole = {m: squared_error(self.table.whole[m]) for m in self.table.metrics}
        return _quality(
            self.table, {m: [w * self.levels[knob][level].added[m] for knob, level in chosen.items()] for m, w in whole.items()}
        )

    def lost_db(self, chosen: Mapping[str, int]) -> float:
        """The larger of the losses in each metric."""
        return max(self.table.whole[metric] - value for metric, value in self.quality(chosen).items())

    def descend(
        self, knobs: Sequence[str], allowed: Callable[[Mapping[str, int]], bool] | None, at_most: float | None
    ) -> dict[str, int]:
        """Steps by falling worth, until the cost is reached or no step is allowed any more."""
        chosen: dict[str, int] = {}
        now = self.cost(chosen)
        heap: list[tuple[float, str, int, int]] = []

        def worth(knob: str, level: int) -> float:
            levels = self.levels[knob]
            harm = levels[level].damage - levels[chosen.get(knob, 0)].damage
            return (now - self.cost({**chosen, knob: level})) / max(harm, TINY)

        def offer(knob: str) -> None:
            first = chosen.get(knob, 0)
            for level in range(first + 1, len(self.levels[knob])):
                heapq.heappush(heap, (-worth(knob, level), knob, first, level))

        for knob in knobs:
            offer(knob)
        while heap and (at_most is None or now > at_most):
            _, knob, first, level = heapq.heappop(heap)
            if first != chosen.get(knob, 0):
                continue  # from where the knob no longer stands
            current = worth(knob, level)
            if heap and -heap[0][0] > current:
                heapq.heappush(heap, (-current, knob, first, level))
                continue
            if current <= 0:
                break
            if allowed is not None and not allowed({**chosen, knob: level}):
                continue
            chosen[knob] = level
            now = self.cost(chosen)
            offer(knob)
        return chosen

    def trim(self, chosen: dict[str, int], at_most: float) -> dict[str, int]:
        """Takes back what the target does not need, the most harmful first."""
        while True:
            options = []
            for knob, level in chosen.items():
                for lower in range(level):
                    option = {**chosen, knob: lower}
                    saved = self.levels[knob][level].damage - self.levels[knob][lower].damage
                    if saved > TINY and self.cost(option) <= at_most:
                        options.append((saved, knob, lower))
            if not options:
                return {knob: level for knob, level in chosen.items() if level}
            _, knob, lower = max(options)
            chosen = {**chosen, knob: lower}
