"""Two models unit by unit: units are paired by their place in the original config, whatever was cut between, and their weights compared.

A unit's *change* is the distance of its weights in the two models over the larger of their norms, on the weights that both still have: 0
is the same, 1 what lies between a unit and nothing, 2 the opposite. It is the same whichever model is named first. Weights are compared as
they are stored: a stream that was cut with exact norms has the weights of its RMS norms scaled by the root of the widths' ratio, and that
shows. Only models of one config can be paired. No torch.

Legend: U units of a site that both models have, P parts (tensors in which the units of a site have weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import store as st
from core.checks import weights_path
from core.errors import CoreError
from core.pruning.units import unit_slices
from core.stored_weights import StoredWeights
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout, Site, in_flow, sites
from store import ModelRow, Store


@dataclass(frozen=True)
class SiteDiff:
    """One site in two models; units are named by their original index."""

    site: str
    kind: str
    total: int
    """Units before any pruning."""
    units: np.ndarray
    """int64 `(U,)`, ascending: in both."""
    change: np.ndarray
    """float64 `(U,)` in [0, 2]."""
    norms: np.ndarray
    """float64 `(U, 2)`: of the unit's weights in the first and in the second model."""
    parts: tuple[str, ...]
    """`(P,)`: the tensors that the units have weights in, with the dimension along which they lie."""
    part_change: np.ndarray
    """float64 `(U, P)` in [0, 2]."""
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]

    @property
    def order(self) -> np.ndarray:
        """Places of `units`, the most changed first."""
        return np.lexsort((self.units, -self.change))

    @property
    def mean(self) -> float:
        """Mean change of the units that both have; 0 without any."""
        return float(self.change.mean()) if len(self.change) else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values; units from the most to the least changed."""
        order = self.order
        return {
            "site": self.site, "kind": self.kind, "total": self.total, "mean_change": self.mean,
            "units": self.units[order].tolist(), "change": self.change[order].tolist(),
            "only_first": list(self.only_first), "only_second": list(self.only_second),
        }  # fmt: skip


@dataclass(frozen=True)
class TensorDiff:
    """One tensor: shapes in both, its change on the weights that both have, and the largest single difference."""

    tensor: str
    first_shape: tuple[int, ...]
    second_shape: tuple[int, ...]
    change: float
    most: float


@dataclass(frozen=True)
class ModelDiff:
    """All sites in the order of data flow, and all tensors by name."""

    first: ModelRow
    second: ModelRow
    sites: tuple[SiteDiff, ...]
    tensors: tuple[TensorDiff, ...]
    notes: tuple[str, ...]

    @property
    def by_change(self) -> list[SiteDiff]:
        """Sites, the most changed first; those that lost units before those that did not where weights are alike."""
        return sorted(self.sites, key=lambda s: (-s.mean, -len(s.only_first) - len(s.only_second), s.site))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Units in both, only in the first, only in the second."""
        found = [(len(s.units), len(s.only_first), len(s.only_second)) for s in self.sites]
        both, first, second = (sum(column) for column in zip(*found, strict=True))
        return both, first, second

    @property
    def identical(self) -> bool:
        """Whether every weight is the same."""
        return self.counts[1:] == (0, 0) and all(t.most == 0.0 for t in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        both, first, second = self.counts
        return {
            "first": self.first.id, "second": self.second.id, "identical": self.identical, "notes": list(self.notes),
            "units": {"both": both, "only_first": first, "only_second": second},
            "sites": [site.to_json() for site in self.sites],
            "tensors": [{**t.__dict__, "first_shape": list(t.first_shape), "second_shape": list(t.second_shape)} for t in self.tensors],
        }  # fmt: skip


class UnitDiffs:
    """The part of `ModelManager` that holds two models side by side."""

    store: Store

    def _weights_path(self, ref: str) -> Path:
        return weights_path(self.store, st.get_model(self.store, ref))

    def unit_diff(self, first: str, second: str) -> ModelDiff:
        """Two models unit by unit. Raises CoreError for models of two configs, whose units have nothing in common, or without weights."""
        a, b = st.get_model(self.store, first), st.get_model(self.store, second)
        differs = sorted({key for one in (a.config, b.config) for key in one if a.config.get(key) != b.config.get(key)})
        if differs:
            raise CoreError(
                f"The units of {a.name} and {b.name} cannot be paired: they are of two configs ({', '.join(differs)} differ).",
                code="config", given=[a.id, b.id], legal="two models of one config, whatever was pruned of them",
            )  # fmt: skip
        found = _diff(str(self._weights_path(a.id)), str(self._weights_path(b.id)))
        notes = []
        roots = [st.baseline_of(self.store, row.id) for row in (a, b)]
        if roots[0].id != roots[1].id:
            notes.append(
                f"They go back to two baselines ({roots[0].name}, {roots[1].name}): units of one number need not do the same in both."
            )
        return ModelDiff(a, b, *found, tuple(notes))


def positions(config: DCAEConfig, site: Site) -> dict[tuple[str, int], np.ndarray]:
    """Where each unit of a site lies in the unpruned tensors: (tensor, dimension) -> int64 `(total, positions of a unit)`."""
    first = unit_slices(config, Layout(), site, [0])
    # Every place is affine in the unit's index, so two units tell where all are.
    second = unit_slices(config, Layout(), site, [min(1, site.total - 1)])
    units = np.arange(site.total)[:, None]
    return {(a.tensor, a.dim): a.indices + units * (b.indices - a.indices) for a, b in zip(first, second, strict=True)}


def kept_places(config: DCAEConfig, layout: Layout) -> dict[tuple[str, int], np.ndarray]:
    """(tensor, dimension) -> the original indices that a model of this layout still has along it, ascending; unpruned ones included."""
    found = {}
    for site in sites(config).values():
        units = np.asarray(layout.units(site))
        for key, places in positions(config, site).items():
            found[key] = np.sort(places[units].reshape(-1))
    return found


def _aligned(
    name: str, weights: StoredWeights, kept: Mapping[tuple[str, int], np.ndarray], shared: Mapping[int, np.ndarray]
) -> np.ndarray:
    """A tensor cut down to the places (dimension -> original indices) that both models have, float64."""
    found = weights.array(name).astype(np.float64)
    for dim, places in shared.items():
        found = np.take(found, np.searchsorted(kept[name, dim], places), axis=dim)
    return found


@lru_cache(maxsize=16)
def _diff(first: str, second: str) -> tuple[tuple[SiteDiff, ...], tuple[TensorDiff, ...]]:
    a, b = StoredWeights(Path(first)), StoredWeights(Path(second))
    config, known = a.config, sites(a.config)
    kept_a, kept_b = kept_places(config, a.layout), kept_places(config, b.layout)
    squares: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    tensors = []
    for name in a.names:
        if "num_batches" in name:
            continue
        shared = {dim: np.intersect1d(kept_a[name, dim], kept_b[name, dim]) for dim in range(2) if (name, dim) in kept_a}
        x, y = _aligned(name, a, kept_a, shared), _aligned(name, b, kept_b, shared)
        away = y - x
        most = float(np.abs(away).max()) if away.size else 0.0
        tensors.append(TensorDiff(name, a.shape(name), b.shape(name), _change_of(x, y), most))
        for dim in shared:
            rest = tuple(axis for axis in range(x.ndim) if axis != dim)
            sums = np.stack([np.square(part).sum(axis=rest) for part in (x, y, away)], axis=1)
            squares[name, dim] = shared[dim], sums
    return tuple(_site(config, known[name], a.layout, b.layout, squares) for name in in_flow(config)), tuple(tensors)


def _change_of(x: np.ndarray, y: np.ndarray) -> float:
    return float(_change(np.array([[np.square(x).sum(), np.square(y).sum(), np.square(y - x).sum()]]))[0])


def _change(sums_N3: np.ndarray) -> np.ndarray:
    """Distance over the larger norm, from squares of (first, second, difference); 0 where both are zero."""
    larger = np.maximum(sums_N3[..., 0], sums_N3[..., 1])
    return np.sqrt(np.divide(sums_N3[..., 2], larger, out=np.zeros_like(larger), where=larger > 0))


def _site(
    config: DCAEConfig,
    site: Site,
    first: Layout,
    second: Layout,
    squares: Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]],
) -> SiteDiff:
    """The units of a site from the squares of each tensor along the dimension in which they lie."""
    own, other = set(first.units(site)), set(second.units(site))
    both = np.array(sorted(own & other), dtype=np.int64)
    parts, sums = [], []
    for (tensor, dim), places in positions(config, site).items():
        at, along = squares[tensor, dim]
        parts.append(f"{tensor}[{dim}]")
        sums.append(along[np.searchsorted(at, places[both])].sum(axis=1))
    by_part = np.stack(sums, axis=1) if len(both) else np.zeros((0, len(parts), 3))
    total = by_part.sum(axis=1)
    return SiteDiff(
        site.name, site.kind, site.total, both, _change(total), np.sqrt(total[:, :2]), tuple(parts), _change(by_part),
        tuple(sorted(own - other)), tuple(sorted(other - own)),
    )  # fmt: skip


def ranges(units: tuple[int, ...]) -> str:
    """Indices in words: `3, 5–9, 12`."""
    parts: list[list[int]] = []
    for unit in units:
        if parts and parts[-1][-1] == unit - 1:
            parts[-1] = [parts[-1][0], unit]
        else:
            parts.append([unit])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[1]}" for p in parts)
