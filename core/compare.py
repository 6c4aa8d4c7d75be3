"""Comparison tables: figures of models with their change against the parent and the baseline. No torch.

Figures compare only within one protocol (quality) or one measurement (cost): what was taken otherwise is left out, and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import store.scores as scores
from core.errors import CoreError
from store import MeasurementRow, ModelRow, Store, baseline_of, get_model

UNCHANGED = 5e-4
"""A relative change of less is none: it would be shown as 0.0 %."""


@dataclass(frozen=True)
class Metric:
    """How a figure is called, shown and judged."""

    key: str
    title: str
    unit: str = ""
    higher_is_better: bool | None = False
    """None: neither, and a relative change says nothing (sparsity is a means)."""
    scale: float = 1.0
    decimals: int = 2
    source: str = "facts"
    """`facts` (arithmetic), `scores` (an evaluation) or `cost` (a benchmark)."""
    detail: bool = False
    """Left out of a model's main figures: it stands in the table of costs (`core.cost`)."""

    def text(self, value: float | None) -> str:
        """The value with its unit, or a dash."""
        if value is None:
            return "–"
        return f"{value * self.scale:,.{self.decimals}f} {self.unit}".strip()


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("parameters", "Parameters", "M", scale=1e-6),
        Metric("nonzero_parameters", "Non-zero parameters", "M", scale=1e-6),
        Metric("sparsity", "Sparsity", "%", None, scale=100, decimals=1),
        Metric("encode_macs", "Encode MACs", "G", scale=1e-9, decimals=3),
        Metric("decode_macs", "Decode MACs", "G", scale=1e-9, decimals=3),
        Metric("weight_bytes", "File", "MB", scale=1e-6),
        Metric("psnr_db", "PSNR", "dB", True, source="scores"),
        Metric("foreground_psnr_db", "Foreground PSNR", "dB", True, source="scores"),
        Metric("ssim", "SSIM", "", True, decimals=4, source="scores"),
        Metric("ms_ssim", "MS-SSIM", "", True, decimals=4, source="scores"),
        Metric("flip", "FLIP (perceptual)", "", decimals=4, source="scores"),
        Metric("lpips", "LPIPS", "", decimals=4, source="scores"),
        Metric("rfid", "rFID", "", source="scores"),
        Metric("accuracy", "Accuracy (within 8/255)", "%", True, scale=100, source="scores"),
        Metric("loss", "Loss (L1)", "", decimals=4, source="scores"),
        Metric("l1", "L1 (8-bit)", "", decimals=5, source="scores"),
        Metric("mse", "MSE (8-bit)", "", decimals=6, source="scores"),
        Metric("latent_drift", "Latent drift", "%", scale=100, source="scores"),
        Metric("encode_ms", "Encode", "ms", source="cost"),
        Metric("decode_ms", "Decode", "ms", source="cost"),
        Metric("both_ms", "Encode and decode", "ms", source="cost"),
        *(
            Metric(f"{part}_{rank}_ms", f"{title} {rank}", "ms", source="cost", detail=True)
            for part, title in (("encode", "Encode"), ("decode", "Decode"), ("both", "Encode and decode"))
            for rank in ("p95", "p99")
        ),
        Metric("encode_images_per_s", "Encoded images a second", "", True, decimals=1, source="cost", detail=True),
        Metric("decode_images_per_s", "Decoded images a second", "", True, decimals=1, source="cost"),
        Metric("both_images_per_s", "Images a second, both ways", "", True, decimals=1, source="cost", detail=True),
        Metric("energy_j_per_image", "Energy an image", "mJ", scale=1e3, decimals=1, source="cost"),
        Metric("power_w", "Mean power", "W", None, decimals=0, source="cost", detail=True),
        Metric("peak_memory_bytes", "Peak GPU memory", "MB", scale=1e-6, decimals=1, source="cost"),
        Metric("reserved_memory_bytes", "Reserved GPU memory", "MB", scale=1e-6, decimals=1, source="cost", detail=True),
        Metric("peak_resident_bytes", "Peak memory growth", "MB", scale=1e-6, decimals=1, source="cost"),
        Metric("start_ms", "Start-up", "ms", decimals=0, source="cost"),
        Metric("load_ms", "Load from the file", "ms", decimals=0, source="cost", detail=True),
        Metric("first_run_ms", "First encode and decode", "ms", decimals=0, source="cost", detail=True),
        Metric("loaded_bytes", "Weights in memory", "MB", scale=1e-6, source="cost", detail=True),
        Metric("sparse_kernel_layers", "Layers on 2:4 kernels", "", None, decimals=0, source="cost", detail=True),
    )
}
MAIN_METRICS = {key: metric for key, metric in METRICS.items() if not metric.detail}
"""What a table of a model's figures shows; every one of `METRICS` may be searched, ranked and drawn by."""
LARGE = 10.0
"""A relative change of more says nothing as a percentage."""


@dataclass(frozen=True)
class Figure:
    """A value with its relative changes (0.1 is 10 % more), None where there is nothing to compare with."""

    metric: Metric
    value: float | None
    against_parent: float | None = None
    against_baseline: float | None = None

    def better(self, change: float | None) -> bool | None:
        """Whether a change is for the better; None for none."""
        if change is None or abs(change) < UNCHANGED or self.metric.higher_is_better is None:
            return None
        return (change > 0) == self.metric.higher_is_better

    def change_text(self, change: float) -> str:
        """The relative change; in brackets the difference too, where the unit is dB or per cent and a ratio says little.

        A change to more than eleven times says that (`x 132`), or the difference alone where there is one.
        """
        ratio = f"x {change + 1:,.0f}" if change > LARGE else f"{change:+.1%}"
        # What fell to zero no longer tells where it fell from.
        if not self.value or self.metric.unit not in ("dB", "%"):
            return ratio
        difference = (self.value - self.value / (1 + change)) * self.metric.scale
        told = f"{difference:+.2f} {'points' if self.metric.unit == '%' else self.metric.unit}"
        return told if change > LARGE else f"{ratio} ({told})"


BESIDE = ("sweep", "loaded_bytes_by_dtype", "not_measured")
"""What a benchmark run says of a model besides its figures."""


@dataclass(frozen=True)
class Comparison:
    """Figures of models, each by metric key, and what could not be compared."""

    models: list[ModelRow]
    figures: dict[str, dict[str, Figure]]
    protocol: dict[str, Any] | None
    measurement: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)
    split: str = "test"
    """Where the quality figures stand in the store: `test`, the pinned images, or `run`, a test run."""
    run: int | None = None
    """Number of the benchmark run that the costs are of."""
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """All that this run says of each model: figures, `sweep`, `loaded_bytes_by_dtype`, and `not_measured`, the reasons by key."""

    @property
    def titles(self) -> dict[str, str]:
        """Each model's name, with some of its id where two have the same."""
        every = [model.name for model in self.models]
        return {m.id: m.name if every.count(m.name) == 1 else f"{m.name} ({m.id[2:8]})" for m in self.models}

    def to_json(self) -> dict[str, Any]:
        """Plain values: ids, names, figures with changes, protocols, what a benchmark says besides, notes."""
        rows = []
        for model in self.models:
            found = {
                key: {"value": f.value, "against_parent": f.against_parent, "against_baseline": f.against_baseline}
                for key, f in self.figures[model.id].items()
            }
            told = {key: value for key, value in self.costs.get(model.id, {}).items() if key in BESIDE}
            rows.append({"id": model.id, "name": model.name, "kind": model.kind, "figures": found, "cost": told})
        return {"models": rows, "protocol": self.protocol, "measurement": self.measurement, "notes": self.notes}


def compare(store: Store, refs: Sequence[str], run: int | None = None) -> Comparison:
    """Compares models by id, prefix, alias or name.

    Costs are of one benchmark run: `run`, else the newest of those that hold most of the models. Raises StoreError for a model that is
    not there, CoreError for a run that holds none of them.
    """
    models = list(dict.fromkeys(get_model(store, ref) for ref in refs))
    notes: list[str] = []
    raw: dict[str, dict[str, float | None]] = {}
    family: dict[str, tuple[str | None, str]] = {m.id: (m.parent_id, baseline_of(store, m.id).id) for m in models}
    needed = list(dict.fromkeys(ref for m in models for ref in (m.id, *family[m.id]) if ref))
    protocol = _shared_protocol(store, needed, notes)
    evaluated = scores.score_rows(store, needed, protocol_id=protocol[0]) if protocol else {}
    bases = list(dict.fromkeys(baseline for _, baseline in family.values()))
    if len(bases) > 1:
        names = ", ".join(get_model(store, ref, deleted=True).name for ref in bases)
        notes.append(
            f"These models come from {len(bases)} baselines ({names}): every change and latent drift is against a model's own baseline."
        )
    measurement = _shared_measurement(store, [m.id for m in models], notes, run)
    for ref in needed:
        row = get_model(store, ref, deleted=True)
        values: dict[str, float | None] = {key: row.facts.get(key) for key in METRICS}
        if ref in evaluated:
            values.update({k: v for k, v in evaluated[ref].means.items() if k in METRICS})
        if measurement is not None and ref in measurement.models:
            values.update({k: v for k, v in measurement.models[ref].items() if k in METRICS})
        raw[ref] = values
    figures: dict[str, dict[str, Figure]] = {}
    for model in models:
        parent, baseline = family[model.id]
        own = raw[model.id]
        figures[model.id] = {
            key: Figure(
                metric,
                own[key],
                relative_change(metric, own[key], raw[parent][key] if parent in raw else None),
                relative_change(metric, own[key], raw[baseline][key]) if baseline != model.id else None,
            )
            for key, metric in METRICS.items()
        }
    shown, costs = None, {}
    if measurement is not None:
        shown = conditions_of(measurement)
        costs = {m.id: measurement.models[m.id] for m in models if m.id in measurement.models}
    number = None if measurement is None else measurement.id
    return Comparison(models, figures, protocol[1] if protocol else None, shown, notes, run=number, costs=costs)


def conditions_of(run: MeasurementRow) -> dict[str, Any]:
    """What a benchmark run's figures stand under."""
    return {"device": run.device, "dtype": run.dtype, **run.settings}


def benchmark_runs(store: Store, refs: Sequence[str]) -> list[MeasurementRow]:
    """The last 20 runs of each model, each run once: first those that hold most of the models, of equals the newest."""
    runs = {run.id: run for ref in refs for run in scores.measurements(store, ref, limit=20)}
    return sorted(runs.values(), key=lambda run: (-sum(ref in run.models for ref in refs), -run.id))


def run_title(m: Mapping[str, Any]) -> str:
    """A benchmark run's conditions in a few words: those that it names."""
    threads = "" if "threads" not in m else f"{m['threads']} thread{'s' if m['threads'] != 1 else ''}"
    sizes = [f"{m['image_size']} px"] if "image_size" in m else []
    sizes += [f"batch {m['batch_size']}"] if "batch_size" in m else []
    name = str(m["device"]).replace("cpu", "CPU")
    device = f"{name} ({m['device_name']})" if m.get("device_name") else name
    kernels = "2:4 kernels" if m.get("sparse_kernels") else ""
    return ", ".join(part for part in (device, threads, str(m["dtype"]), kernels, *sizes) if part)


def relative_change(metric: Metric, value: float | None, reference: float | None) -> float | None:
    """How much more (0.1 is 10 %) a value is than a reference; None where one is missing or a ratio says nothing."""
    if value is None or reference is None or reference == 0 or metric.higher_is_better is None:
        return None
    change = value / reference - 1.0
    return change if reference > 0 else -change  # SSIM may be below 0: from -0.01 to -0.02 is less, not 100 % more


def _shared_protocol(store: Store, needed: Sequence[str], notes: list[str]) -> tuple[str, dict[str, Any]] | None:
    """The protocol that most of the models were last evaluated under."""
    last = scores.score_rows(store, needed)
    if not last:
        return None
    ids = [entry.protocol_id for entry in last.values()]
    best = max(dict.fromkeys(ids), key=ids.count)
    if len(set(ids)) > 1:
        notes.append("Some models were last evaluated on other images: only figures of one protocol are shown.")
    return best, next(entry.protocol for entry in last.values() if entry.protocol_id == best)


def _shared_measurement(store: Store, shown: Sequence[str], notes: list[str], wanted: int | None) -> MeasurementRow | None:
    """The benchmark run that is asked for, else the newest of those that hold most of the models."""
    runs = benchmark_runs(store, shown)
    if wanted is not None:
        runs = [run for run in runs if run.id == wanted] or _no_run(runs, wanted)
    if not runs:
        return None
    best = runs[0]
    missing = [ref for ref in shown if ref not in best.models]
    if missing:
        notes.append(
            f"{len(missing)} of {len(shown)} models {'was' if len(missing) == 1 else 'were'} not in the benchmark run shown "
            f"({run_title(conditions_of(best))}): costs compare only within one run. Benchmark them together."
        )
    return best


def _no_run(known: Sequence[MeasurementRow], wanted: int) -> NoReturn:
    legal = [f"{run.id}: {run_title(conditions_of(run))}" for run in known]
    raise CoreError(f"None of these models was in benchmark run {wanted}.", code="run", given=wanted, legal=legal)
