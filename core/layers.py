"""A model layer by layer: widths before and after, sparsity, and histograms of weights and activations. No torch.

Weights are read from the store as they are asked for; activations come from a job (`core.operations.activations`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import store as st
import store.jobs as jobs
from core.checks import SpecLike, checked
from core.errors import CoreError
from core.settings import Settings
from core.specs import ActivationsSpec
from core.stored_weights import StoredWeights
from core.unit_diff import kept_places
from dcaecore.layout import Layout
from store import JobRow, Store

BINS = 48
MOST_CELLS = 128
"""A sparsity map has at most so many rows and columns; cells of larger layers are means."""


@dataclass(frozen=True)
class Layer:
    """One matrix or convolution: its weight's shape before any pruning and now, how much of it is zero, and how it is spread."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    zeros: int
    """Weights of `after` that are exactly zero."""
    rms: float
    edges: tuple[float, float]
    """Least and largest weight that is not zero."""
    histogram: tuple[int, ...]
    """Counts of the weights that are not zero in `BINS` equal steps between the edges."""

    @property
    def num_weights(self) -> int:
        return int(np.prod(self.after))

    @property
    def sparsity(self) -> float:
        """Zeros over all of the weights that are there."""
        return self.zeros / self.num_weights

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "layer": self.name, "before": list(self.before), "after": list(self.after), "sparsity": self.sparsity, "rms": self.rms,
            "edges": list(self.edges), "histogram": list(self.histogram),
        }  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """What comes out of one layer over all images: its values' least, largest, mean and spread, and how many channels are dead."""

    layer: str
    least: float
    largest: float
    mean: float
    std: float
    zeros: float
    """Share of values that are exactly zero."""
    channels: int
    dead: int
    """Channels of which no value is further than 1e-6 from zero."""
    histogram: tuple[int, ...]
    """Counts in `BINS` equal steps from the least to the largest."""


@dataclass(frozen=True)
class Activations:
    """An activations job's table with the images that it was measured on."""

    protocol: dict[str, Any]
    layers: dict[str, Activation]

    @property
    def title(self) -> str:
        """The images in a few words."""
        p = self.protocol
        return f"{p['num_images']} {p['part']} images of {p['source']}, {p['image_size']} px, {p['dtype']}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Activations:
        """Reads what the job wrote."""
        layers = {one["layer"]: Activation(**{**one, "histogram": tuple(one["histogram"])}) for one in data["layers"]}
        return cls(data["protocol"], layers)


class Layers:
    """The part of `ModelManager` that looks inside one model."""

    store: Store
    settings: Settings
    _submit: Callable[..., JobRow]
    _check_size: Callable[[str, int], None]
    _weights_path: Callable[[str], Path]

    def layers(self, ref: str) -> list[Layer]:
        """Every matrix and convolution by name. Raises CoreError where the weights were cleaned away."""
        return list(_layers(str(self._weights_path(ref))))

    def sparsity_map(self, ref: str, layer: str) -> np.ndarray:
        """Share of zeros, float32 `(outputs, inputs)` in [0, 1], at most `MOST_CELLS` a side; raises CoreError for an unknown layer."""
        found = self._weight(ref, layer)
        zero = (found == 0).reshape(*found.shape[:2], -1).mean(axis=-1, dtype=np.float64)
        return _shrunk(_shrunk(zero, 0), 1).astype(np.float32)

    def weight_values(self, ref: str, layer: str) -> np.ndarray:
        """All weights of a layer that are not zero, `(N,)`."""
        found = self._weight(ref, layer).reshape(-1)
        return found[found != 0]

    def _weight(self, ref: str, layer: str) -> np.ndarray:
        path = self._weights_path(ref)
        legal = [one.name for one in _layers(str(path))]
        if layer not in legal:
            raise CoreError(f"The model has no layer {layer!r}.", code="layer", given=layer, legal=legal)
        return StoredWeights(path).array(f"{layer}.weight")

    def measure_activations(self, ref: str, spec: SpecLike = None, *, device: str | None = None) -> JobRow:
        """Submits a measurement of what comes out of each layer."""
        given, row = checked(ActivationsSpec, spec), st.get_model(self.store, ref)
        self._check_size(row.id, given.image_size)
        return self._submit(given, row.id, device=device, name="activations")

    def activations(self, ref: str) -> Activations | None:
        """What the newest finished measurement of a model found; None where there was none."""
        model = st.get_model(self.store, ref).id
        found = jobs.list_jobs(self.store, ("done",), 1, operations=("activations",), parent=model)
        return Activations.from_json(json.loads(self.store.blobs.read(found[0].result["table_digest"]))) if found else None


@lru_cache(maxsize=32)
def _layers(path: str) -> tuple[Layer, ...]:
    weights = StoredWeights(Path(path))
    whole = {key: len(places) for key, places in kept_places(weights.config, Layout()).items()}
    made = []
    for name in weights.names:
        shape = weights.shape(name)
        if not name.endswith(".weight") or len(shape) < 2:
            continue
        flat = weights.array(name).reshape(-1)
        alive = flat[flat != 0]
        counts, edges = np.histogram(alive, bins=BINS) if len(alive) else (np.zeros(BINS, dtype=int), np.zeros(BINS + 1))
        before = tuple(whole.get((name, dim), size) for dim, size in enumerate(shape))
        rms = float(np.sqrt(np.mean(np.square(flat, dtype=np.float64))))
        made.append(
            Layer(
                name.removesuffix(".weight"), before, shape, len(flat) - len(alive), rms, (float(edges[0]), float(edges[-1])),
                tuple(int(count) for count in counts),
            )
        )  # fmt: skip
    return tuple(made)


def _shrunk(values: np.ndarray, axis: int) -> np.ndarray:
    """At most MOST_CELLS along an axis: means of neighbours, each of its share of the places."""
    size = values.shape[axis]
    if size <= MOST_CELLS:
        return values
    starts = np.arange(MOST_CELLS) * size // MOST_CELLS
    counts = np.diff(np.append(starts, size))
    shape = [1] * values.ndim
    shape[axis] = MOST_CELLS
    return np.add.reduceat(values, starts, axis=axis) / counts.reshape(shape)
