"""A latency table: milliseconds of each kind of block over a grid of widths, as the profile job measured them on one device.

A model's latency is `offset + scale * sum of its blocks`, offset and scale fitted on whole models of other widths. Between grid
points the table is interpolated linearly, beyond its edge it is held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from core.errors import CoreError
from dcaecore.config import DCAEConfig
from dcaecore.cost import ModuleCost, module_costs
from dcaecore.layout import Layout

TABLE_VERSION = 1
Widths = tuple[int, ...]


def group_of(row: ModuleCost) -> str:
    """Rows of one group differ in their widths alone: the blocks of a stage."""
    return re.sub(r"blocks\.\d+", "blocks.*", row.name)


def coder_of(group: str) -> str:
    """`encoder` or `decoder`."""
    return group.partition(".")[0]


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by group and widths, with what turns their sum into a model's latency, by coder."""

    protocol: Mapping[str, Any]
    """Device, dtype, image size, batch size, threads: where and how it was measured."""
    config: Mapping[str, Any]
    groups: Mapping[str, Mapping[Widths, float]]
    offset_ms: Mapping[str, float] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    checks: tuple[Mapping[str, Any], ...] = ()
    """Whole models that the table was not fitted on: coder, predicted_ms, measured_ms."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "version": TABLE_VERSION,
            "protocol": dict(self.protocol),
            "config": dict(self.config),
            "groups": {name: [[list(widths), ms] for widths, ms in sorted(t.items())] for name, t in sorted(self.groups.items())},
            "offset_ms": dict(self.offset_ms),
            "scale": dict(self.scale),
            "checks": [dict(check) for check in self.checks],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Reads `to_json`'s values; raises CoreError for another version."""
        if data.get("version") != TABLE_VERSION:
            raise CoreError("This latency table was made by another version.", code="table_version", next="Profile again.")
        groups = {name: {tuple(widths): ms for widths, ms in rows} for name, rows in data["groups"].items()}
        return cls(data["protocol"], data["config"], groups, data["offset_ms"], data["scale"], tuple(data["checks"]))

    @property
    def coders(self) -> tuple[str, ...]:
        """What was measured: encoder, decoder or both."""
        return tuple(sorted({coder_of(group) for group in self.groups}))

    def error(self, coder: str) -> float | None:
        """Mean of |predicted - measured| / measured over the checks of a coder; None where it has none."""
        found = [abs(c["predicted_ms"] / c["measured_ms"] - 1.0) for c in self.checks if c["coder"] == coder]
        return float(np.mean(found)) if found else None

    def predict(self, config: DCAEConfig, layout: Layout, coder: str) -> float:
        """Milliseconds of a batch's encode or decode.

        Raises CoreError for another config, and for a coder or a stream's width that was not measured.
        """
        if config != DCAEConfig.from_json(self.config):
            raise CoreError("The latency table is of another architecture.", code="table_config", next="Profile this model.")
        if coder not in self.coders:
            raise CoreError(f"The latency table has no {coder}.", code="table_coder", given=coder, legal=self.coders)
        total = self.sum_of_blocks(config, layout, coder)
        return self.offset_ms.get(coder, 0.0) + self.scale.get(coder, 1.0) * total

    def sum_of_blocks(self, config: DCAEConfig, layout: Layout, coder: str) -> float:
        """Milliseconds of a coder's blocks, each as if alone."""
        rows = module_costs(config, layout, int(self.protocol["image_size"]))
        return sum(self._block(group_of(row), row.widths) for row in rows if coder_of(row.name) == coder)

    def _block(self, group: str, widths: Widths) -> float:
        known = self.groups[group].get(widths)
        if known is None:
            known = self._seen.get((group, widths))
        if known is None:
            known = self._seen[(group, widths)] = self._interpolated(group, widths)
        return known

    def _interpolated(self, group: str, widths: Widths) -> float:
        from scipy.interpolate import RegularGridInterpolator  # half a second, which a page need not wait for

        axes, values = self._grids[group]
        for width, axis in zip(widths, axes, strict=True):
            if len(axis) == 1 and width != axis[0]:
                raise CoreError(
                    f"The latency profile knows {group} at a width of {axis[0]} only, not at {width}: it did not vary the streams.",
                    code="profile_streams",
                    given=list(widths),
                    next="Profile the model with `streams`.",
                )
        place = [min(max(width, axis[0]), axis[-1]) for width, axis in zip(widths, axes, strict=True)]
        varied = [index for index, axis in enumerate(axes) if len(axis) > 1]
        if not varied:
            return float(values.reshape(-1)[0])
        found = RegularGridInterpolator([axes[i] for i in varied], values.squeeze())([place[i] for i in varied])
        return float(found[0])

    @cached_property
    def _seen(self) -> dict[tuple[str, Widths], float]:
        return {}

    @cached_property
    def _grids(self) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
        """Axes and values of each group's grid; every combination of its widths is there."""
        made = {}
        for group, table in self.groups.items():
            axes = [np.unique(axis) for axis in np.array(list(table)).T]
            values = np.array([table[tuple(int(w) for w in point)] for point in _product(axes)])
            made[group] = axes, values.reshape([len(axis) for axis in axes])
        return made


def _product(axes: list[np.ndarray]) -> np.ndarray:
    return np.stack([grid.reshape(-1) for grid in np.meshgrid(*axes, indexing="ij")], axis=1)


def fit(sums_ms: np.ndarray, measured_ms: np.ndarray) -> tuple[float, float]:
    """Offset and scale, neither negative, of least relative squared error."""
    from scipy.optimize import nnls

    weights = 1.0 / measured_ms
    (offset, scale), _ = nnls(np.stack([weights, sums_ms * weights], axis=1), np.ones(len(sums_ms)))
    return float(offset), float(scale)
