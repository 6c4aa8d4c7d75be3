"""What the sensitivity job measured: quality against the rate of each site (or stage), everything else whole.

Losses of several sites add up in mean squared error as long as each is small: what is left of the other sites then hardly changes what
one of them is worth. Larger ones grow on each other. By how much is measured too: all knobs at each rate together, beside the sum of
what each adds alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from core.errors import CoreError

TABLE_VERSION = 1
METRICS = ("psnr_db", "foreground_psnr_db")
TOGETHER = "all together"
"""The knob of a cell in which every knob was pruned at once."""
SMALL = 0.05
"""Of the least sum that was measured together: below it losses simply add up."""


def squared_error(psnr_db: float) -> float:
    """Mean squared error that a PSNR stands for, in units of the peak squared."""
    return float(10.0 ** (-psnr_db / 10.0))


def decibels(error: float) -> float:
    """PSNR of a mean squared error in units of the peak squared."""
    return float(-10.0 * np.log10(error))


@dataclass(frozen=True)
class Cell:
    """One pruning of one knob: the share of its units that went, and the figures of what was left."""

    knob: str
    rate: float
    """As asked."""
    share: float
    """As removed, by the rounding rule."""
    figures: Mapping[str, float]


@dataclass(frozen=True)
class SensitivityTable:
    """Cells of one model on one set of images. A knob is a site, or a stage with all its chosen sites."""

    model: str
    layout_digest: str
    protocol: Mapping[str, Any]
    knobs: Mapping[str, tuple[str, ...]]
    """Knob -> its sites."""
    whole: Mapping[str, float]
    """Figures of the model as it is."""
    cells: tuple[Cell, ...]
    together: tuple[Cell, ...] = ()
    """Every knob at one rate at once; empty in tables that were made before this was measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "version": TABLE_VERSION,
            "model": self.model,
            "layout_digest": self.layout_digest,
            "protocol": dict(self.protocol),
            "knobs": {name: list(sites) for name, sites in self.knobs.items()},
            "whole": dict(self.whole),
            "cells": [asdict(cell) for cell in self.cells],
            "together": [asdict(cell) for cell in self.together],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SensitivityTable:
        """Reads `to_json`'s values; raises CoreError for another version."""
        if data.get("version") != TABLE_VERSION:
            raise CoreError("This sensitivity table was made by another version.", code="table_version", next="Measure again.")
        cells, together = (tuple(Cell(**cell) for cell in found) for found in (data["cells"], data.get("together", ())))
        knobs = {name: tuple(sites) for name, sites in data["knobs"].items()}
        return cls(data["model"], data["layout_digest"], data["protocol"], knobs, data["whole"], cells, together)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The figures that were measured everywhere."""
        return tuple(m for m in METRICS if m in self.whole and all(m in cell.figures for cell in self.cells))

    def largest_share(self, knob: str) -> float:
        """Beyond which nothing was measured."""
        return max(cell.share for cell in self.cells if cell.knob == knob)

    def added_error(self, knob: str, metric: str, shares: Iterable[float]) -> np.ndarray:
        """Mean squared error that removing these shares adds, `(shares,)`: monotone, zero at zero, held beyond the last one."""
        from scipy.interpolate import PchipInterpolator  # half a second, which a page need not wait for

        found = {cell.share: squared_error(cell.figures[metric]) for cell in self.cells if cell.knob == knob}
        start = squared_error(self.whole[metric])
        x = np.array([0.0, *sorted(share for share in found if share > 0)])
        y = np.array([0.0, *(max(0.0, found[share] - start) for share in x[1:])])
        wanted = np.clip(np.array(list(shares), dtype=np.float64), 0.0, x[-1])
        if len(x) == 1:
            return np.zeros(len(wanted))
        return np.asarray(PchipInterpolator(x, np.maximum.accumulate(y))(wanted), dtype=np.float64)

    def joint_error(self, metric: str, added: Sequence[float]) -> float:
        """Mean squared error that prunings of several knobs add together, of what each adds alone (`added`, as `added_error` has it).

        Their sum, times the ratio that was measured where all knobs were pruned at once and added up to as much, to the power of how
        spread the sum is over knobs: 1 - sum of squared shares, over that of the measurement. So one knob alone adds what it adds.
        """
        total, anchors = sum(added), self._anchors[metric]
        if total <= 0 or anchors is None:
            return total
        sums, ratios, spreads = anchors
        at = np.log(total)
        spread = (1.0 - sum((own / total) ** 2 for own in added)) / float(np.interp(at, sums, spreads))
        return total * float(np.exp(float(np.interp(at, sums, ratios)) * min(1.0, spread)))

    @cached_property
    def _anchors(self) -> Mapping[str, tuple[np.ndarray, ...] | None]:
        """By metric, by rising sum: logarithms of the sum of what each knob adds alone and of measured over sum, and how spread the
        sum is over knobs, each `(anchors,)`; None where nothing was measured together. The first is so small that nothing grows."""
        found: dict[str, tuple[np.ndarray, ...] | None] = {}
        for metric in self.metrics:
            start = squared_error(self.whole[metric])
            rows = []
            for joint in self.together:
                alone = [max(0.0, squared_error(c.figures[metric]) - start) for c in self.cells if c.rate == joint.rate]
                total, measured = sum(alone), squared_error(joint.figures[metric]) - start
                spread = 1.0 - sum((own / total) ** 2 for own in alone) if total > 0 else 0.0
                if spread > 0 and measured > 0:
                    rows.append((np.log(total), np.log(measured / total), spread))
            rows.sort()
            first = [(rows[0][0] + np.log(SMALL), 0.0, rows[0][2])] if rows else []
            found[metric] = tuple(np.array(column) for column in zip(*first, *rows, strict=True)) if rows else None
        return found
