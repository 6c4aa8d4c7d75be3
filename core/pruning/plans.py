"""Plans: which units of each site are kept, as JSON-able data that names the layout it was made for. No torch.

The rounding rule: of a site's n units, `floor(rate * n)` go, never the last one; with `round_to` r the kept channels are rounded
*up* to a multiple of r (heads never are). The achieved share stands beside the asked one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from core.errors import CoreError
from core.specs import STRUCTURED_METHODS, PruneSpec
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, Site, SiteKind, sites

PLAN_VERSION = 2
"""Since 2 a plan names its model's config too."""
LEAST_SHARE = 0.1
"""What a site keeps at least where sites are ranked together."""
COMPARABLE_SCORES = ("lamp", "taylor", "obs", "random")
"""Scores that mean the same in every site; the others are magnitudes of their site."""


_KINDS = frozenset(
    f"{part}{kind}"
    for part in ("", "encoder.", "decoder.", "encoder.fine.", "encoder.deep.", "decoder.fine.", "decoder.deep.")
    for kind in get_args(SiteKind)
)


@dataclass(frozen=True)
class Plan:
    """Kept units of each pruned site, ascending, in the coordinates of the model that it was made for."""

    parent: str
    layout_digest: str
    keep: Mapping[str, tuple[int, ...]]
    config_digest: str = ""
    """sha256 of the canonical JSON of the model's config; empty in plans of version 1."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        keep = {name: list(units) for name, units in sorted(self.keep.items())}
        made_for = {"parent": self.parent, "layout_digest": self.layout_digest}
        if not self.config_digest:
            return {"version": 1, **made_for, "keep": keep}
        return {"version": PLAN_VERSION, **made_for, "config_digest": self.config_digest, "keep": keep}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Reads `to_json`'s values; raises CoreError for another version."""
        if data.get("version") not in (1, PLAN_VERSION):
            raise CoreError(
                "This plan was made by another version.", code="plan_version", given=data.get("version"), legal=(1, PLAN_VERSION)
            )
        keep = {name: tuple(units) for name, units in data["keep"].items()}
        return cls(data["parent"], data["layout_digest"], keep, data.get("config_digest", ""))

    @property
    def id(self) -> str:
        """`p_` and 16 hex digits of the sha256 of the canonical JSON."""
        return "p_" + _digest(self.to_json())[:16]

    def apply_to(self, config: DCAEConfig, layout: Layout) -> Layout:
        """The layout after this plan; raises CoreError where it was made for another config or layout."""
        given = _digest(config.to_json())
        if self.config_digest not in ("", given):
            raise CoreError(
                f"Plan {self.id} was made for another model ({self.parent}): the configs differ.",
                code="plan_config",
                given=given[:12],
                legal=self.config_digest[:12],
                next="Make a plan for this model.",
            )
        if layout.digest() != self.layout_digest:
            raise CoreError(
                f"Plan {self.id} was made for another model ({self.parent}): the layouts differ.",
                code="plan_layout",
                given=layout.digest()[:12],
                legal=self.layout_digest[:12],
                next="Make a plan for this model.",
            )
        return layout.compose(config, self.keep)


def _digest(values: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def kept_count(units: int, rate: float, *, round_to: int = 1) -> int:
    """Units that stay of `units` at a rate, by the rounding rule."""
    # A tenth of 30 is 3, not 2: the product of two decimals may fall just short of the integer that it is.
    kept = max(1, units - math.floor(rate * units + 1e-9))
    return min(units, math.ceil(kept / round_to) * round_to)


def site_rates(config: DCAEConfig, spec: PruneSpec) -> dict[str, float]:
    """The rate of each site that the spec prunes: its own, its stage's, its kind's, or the spec's, in this order.

    A stage may be counted from the deepest, which is -1. A kind that this config lacks may be named: one spec serves many shapes.
    Raises CoreError for a name in `spec.site_rates` that is no site, stage or kind, or that the spec leaves out.
    """
    names = {name: names_of(config, name) for name in sites(config)}
    absent = _KINDS.difference(*names.values())
    unknown = sorted(set(spec.site_rates).difference(absent, *names.values()))
    if unknown:
        first = next(iter(names))
        raise CoreError(
            f"There is no site, stage or kind of site {unknown[0]!r}.",
            code="unknown_site",
            given=unknown[0],
            legal=[*sorted({site.kind for site in sites(config).values()}), *names[first][2:4], f"a site such as {first}"],
        )
    rates: dict[str, float] = {}
    meant: set[str] = set()
    for name, site in sites(config).items():
        if spec.part not in ("both", site.coder) or site.kind not in spec.kinds:
            continue
        named = names[name]
        meant.update(named)
        rate = next((spec.site_rates[key] for key in named if key in spec.site_rates), spec.rate or 0.0)
        if rate > 0:
            rates[name] = rate
    idle = sorted(set(spec.site_rates) - meant - absent)
    if idle:
        raise CoreError(
            f"The rate of {idle[0]!r} would have no effect: part and kinds leave it out.",
            code="idle_rate",
            given=idle[0],
            next="Add its kind to `kinds`, or take its rate away.",
        )
    if not rates:
        raise CoreError("Nothing would be pruned: every site is locked or left out.", code="nothing_to_prune")
    return rates


def names_of(config: DCAEConfig, name: str) -> tuple[str, ...]:
    """What a site answers to, the most particular first: site and stage, each counted from the finest and from the deepest, its kind
    in the finer or the deeper half of its coder's stages (which costs the time, which the parameters), in its coder, anywhere."""
    site = sites(config)[name]
    stage, rest = f"{site.coder}.stages.{site.stage}", name.removeprefix(f"{site.coder}.stages.{site.stage}")
    deep = f"{site.coder}.stages.{site.stage - config.coder(site.coder).num_stages}"
    half = f"{site.coder}.{'fine' if _is_fine(config, site) else 'deep'}.{site.kind}"
    return name, deep + rest, stage, deep, half, f"{site.coder}.{site.kind}", site.kind


def _is_fine(config: DCAEConfig, site: Site) -> bool:
    """Whether a site's stage is of the finer half of its coder's; the middle one is."""
    coder = config.coder(site.coder)
    return site.stage - coder.first_stage < math.ceil((coder.num_stages - coder.first_stage) / 2)


def _count(site: Site, units: int, rate: float, spec: PruneSpec) -> int:
    return kept_count(units, rate, round_to=1 if site.kind == "heads" else spec.round_to)


def make_plan(config: DCAEConfig, layout: Layout, scores: Mapping[str, np.ndarray], spec: PruneSpec, *, parent: str = "") -> Plan:
    """Keeps the units of highest score; ties keep the lower index. `scores[site]` is `(units,)`.

    `local` scope applies the rate to each site. `kind` and `global` rank the units of all sites (of a kind) together, magnitudes
    over the mean of those of their site that are not zero, and remove the share of their sum that the sites' rates ask for; each
    site keeps a tenth at least.
    """
    known, rates = sites(config), site_rates(config, spec)
    values = {name: np.asarray(scores[name], dtype=np.float64) for name in rates}
    for name, own in values.items():
        if not np.isfinite(own).all():
            raise CoreError(f"Scores of {name} are not finite: the model's weights are damaged.", code="not_finite")
    counts = {name: _count(known[name], len(values[name]), rate, spec) for name, rate in rates.items()}
    if spec.scope != "local" and spec.method == "structured":
        counts = _ranked_counts(known, values, counts, spec)
    keep = {}
    for name, count in counts.items():
        best = np.argsort(-values[name], kind="stable")[:count]
        keep[name] = tuple(int(i) for i in np.sort(best))
    return Plan(parent, layout.digest(), keep, _digest(config.to_json()))


def _ranked_counts(
    known: Mapping[str, Site], values: Mapping[str, np.ndarray], counts: Mapping[str, int], spec: PruneSpec
) -> dict[str, int]:
    """Kept units of each site where sites are ranked together."""
    pools: dict[str, list[str]] = {}
    for name in values:
        pools.setdefault(known[name].kind if spec.scope == "kind" else "all", []).append(name)
    kept: dict[str, int] = {}
    for names in pools.values():
        least = {name: max(1, math.ceil(len(values[name]) * LEAST_SHARE)) for name in names}
        ranked = []
        for name in names:
            own = values[name]
            if spec.score in COMPARABLE_SCORES:
                scaled = own
            else:
                # A masked unit scores 0, and must not make the others of its site look larger than they would after a cut.
                scaled = own / max(float(own[own > 0].mean()) if (own > 0).any() else 0.0, np.finfo(np.float64).tiny)
            order = np.sort(scaled)[: len(own) - least[name]]
            ranked += [(float(value), name) for value in order]
        ranked.sort()
        gone = sum(len(values[name]) - counts[name] for name in names)
        if gone > len(ranked):
            raise CoreError(
                f"{gone} units cannot go: each site keeps a tenth of its units.", code="rate", given=spec.rate, next="Prune less."
            )
        removed: dict[str, int] = dict.fromkeys(names, 0)
        for _, name in ranked[:gone]:
            removed[name] += 1
        for name in names:
            step = 1 if known[name].kind == "heads" else spec.round_to
            left = len(values[name]) - removed[name]
            kept[name] = min(len(values[name]), math.ceil(left / step) * step)
    return {name: kept[name] for name in values}


def predicted_layout(config: DCAEConfig, layout: Layout, spec: PruneSpec) -> Layout | None:
    """A layout of the widths that a spec will lead to; which units stay does not change any cost.

    None where only the scores can tell: sites that are ranked together.
    """
    if spec.method not in STRUCTURED_METHODS:
        return layout
    rates = site_rates(config, spec)
    if spec.apply == "mask":
        return layout
    if spec.method == "structured" and spec.scope != "local":
        return None
    known, keep = sites(config), {}
    for name, rate in rates.items():
        keep[name] = tuple(range(_count(known[name], layout.width(known[name]), rate, spec)))
    return layout.compose(config, keep)


def achieved(config: DCAEConfig, layout: Layout, plan: Plan) -> float:
    """Share of the named sites' units that a plan removes."""
    known = sites(config)
    total = sum(layout.width(known[name]) for name in plan.keep)
    return 1.0 - sum(len(units) for units in plan.keep.values()) / total
