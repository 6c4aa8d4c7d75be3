"""What models cost, for tables and charts: latency with its tail, throughput over sizes, memory, start-up, bytes. No torch.

Everything is of one benchmark run, that of a comparison. A figure that was not measured has its reason in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.compare import METRICS, Comparison, run_title

PARTS = {"decode": "Decode", "encode": "Encode", "both": "Encode and decode"}
_PLAIN = (
    "encode_images_per_s", "decode_images_per_s", "both_images_per_s", "energy_j_per_image", "power_w", "peak_memory_bytes",
    "reserved_memory_bytes", "peak_resident_bytes", "sparse_kernel_layers",
)  # fmt: skip


NOT_MEASURED = "not measured: "
BYTES_TITLE = "Parameters, in 32 / 16 bits"


@dataclass(frozen=True)
class CostLine:
    """A row of a table of costs: its title, and a text for each model by id."""

    title: str
    cells: Mapping[str, str]

    @property
    def reason(self) -> str | None:
        """Why no model has this figure, where it is the same for all: one sentence says more than a row of it."""
        said = set(self.cells.values())
        return said.pop() if len(said) == 1 and next(iter(said)).startswith(NOT_MEASURED) else None


def cost_lines(comparison: Comparison) -> list[CostLine]:
    """Rows of the table: what any model has a figure for, or a reason why not. Bytes are there without a benchmark."""
    refs = [model.id for model in comparison.models]
    lines = [CostLine(PARTS[part], {ref: _tail(comparison, ref, part) for ref in refs}) for part in ("encode", "decode", "both")]
    lines += [CostLine(METRICS[key].title, {ref: _plain(comparison, ref, key) for ref in refs}) for key in _PLAIN]
    lines.append(CostLine(METRICS["start_ms"].title, {ref: _start(comparison, ref) for ref in refs}))
    lines.append(CostLine("Weights in memory", {ref: _in_memory(comparison, ref) for ref in refs}))
    lines.append(CostLine("File", {ref: METRICS["weight_bytes"].text(_value(comparison, ref, "weight_bytes")) for ref in refs}))
    lines.append(CostLine(BYTES_TITLE, {ref: _bytes(_value(comparison, ref, "parameters")) for ref in refs}))
    return [line for line in lines if set(line.cells.values()) != {"–"}]


def conditions_text(m: Mapping[str, Any]) -> str:
    """A benchmark run's protocol, in a sentence."""
    warm = f"{m['warmup']} untimed and " if "warmup" in m else ""
    parts = [run_title(m)]
    if "torch" in m:
        parts.append(f"torch {m['torch']}")
    parts.append(f"{warm}{m.get('repeats', '?')} timed repeats, models in turn")
    if "synchronisation" in m:
        parts.append(f"synchronisation: {m['synchronisation']}")
    if m.get("starts"):
        parts.append(f"start-up and memory: {m['starts']} fresh processes a model")
    if "sweep_repeats" in m:
        parts.append(f"{m['sweep_repeats']} repeats at each further size")
    if "energy" in m:
        parts.append(f"energy: {m['energy']}, the whole board")
    return "; ".join(parts) + "."


def under(comparison: Comparison, keys: Iterable[str]) -> str:
    """What figures stand under, in a few words: one protocol for quality, one benchmark run for costs; empty for plain facts."""
    sources, told = {METRICS[key].source for key in keys}, []
    if "scores" in sources and comparison.protocol:
        p = comparison.protocol
        told.append(f"Quality: {p['num_images']} images of {p['source']}, {p['image_size']} px, {p['dtype']}.")
    if "cost" in sources and comparison.measurement:
        told.append(f"Costs: one benchmark run on {run_title(comparison.measurement)}.")
    return " ".join(told)


@dataclass(frozen=True)
class SweepPoint:
    """Throughput of one model at one size; `images_per_s` is None where it was not measured, for the reason `why`."""

    model_id: str
    image_size: int
    batch_size: int
    images_per_s: float | None
    why: str = ""


def sweep_points(comparison: Comparison, part: str = "decode") -> list[SweepPoint]:
    """Every point of the sweep of the comparison's benchmark run, in the order of models and sizes; empty where there was none."""
    found = []
    for model in comparison.models:
        for point in comparison.costs.get(model.id, {}).get("sweep", {}).values():
            value = point.get(f"{part}_images_per_s")
            found.append(SweepPoint(model.id, point["image_size"], point["batch_size"], value, point.get("not_measured", "")))
    return found


SWEEP_TITLE = "Images a second: encode / decode / both"


def sweep_rows(comparison: Comparison) -> list[CostLine]:
    """The sweep as a table: a row a size; images a second of encode, decode and both in each cell."""
    parts = {part: {(p.image_size, p.batch_size, p.model_id): p for p in sweep_points(comparison, part)} for part in PARTS}
    lines = []
    for size, batch in sorted({(size, batch) for size, batch, _ in parts["both"]}):
        cells = {}
        for model in comparison.models:
            own = [parts[part].get((size, batch, model.id)) for part in ("encode", "decode", "both")]
            first = own[0]
            if first is None:
                cells[model.id] = "–"
            elif first.images_per_s is None:
                cells[model.id] = f"{NOT_MEASURED}{first.why}"
            else:
                cells[model.id] = " / ".join(f"{p.images_per_s:,.1f}" for p in own if p is not None)
        lines.append(CostLine(f"{size} px, batch {batch}", cells))
    return lines


def _value(comparison: Comparison, ref: str, key: str) -> float | None:
    return comparison.figures[ref][key].value


def _plain(comparison: Comparison, ref: str, key: str) -> str:
    value, why = _value(comparison, ref, key), comparison.costs.get(ref, {}).get("not_measured", {}).get(key)
    return f"{NOT_MEASURED}{why}" if value is None and why else METRICS[key].text(value)


def _tail(comparison: Comparison, ref: str, part: str) -> str:
    median, p95, p99 = (_value(comparison, ref, f"{part}{rank}_ms") for rank in ("", "_p95", "_p99"))
    if median is None:
        return "–"
    text = METRICS[f"{part}_ms"].text(median)
    return text if p95 is None or p99 is None else f"{text} (p95 {p95:,.2f}, p99 {p99:,.2f})"


def _start(comparison: Comparison, ref: str) -> str:
    text = _plain(comparison, ref, "start_ms")
    load, first = (_value(comparison, ref, key) for key in ("load_ms", "first_run_ms"))
    return text if load is None or first is None else f"{text} (load {load:,.0f}, first run {first:,.0f})"


def _in_memory(comparison: Comparison, ref: str) -> str:
    by_dtype = comparison.costs.get(ref, {}).get("loaded_bytes_by_dtype", {})
    # A BatchNorm's counters are eight bytes each: no line of their own.
    return ", ".join(f"{value / 1e6:,.2f} MB {name}" for name, value in by_dtype.items() if value >= 5e3) or "–"


def _bytes(parameters: float | None) -> str:
    if parameters is None:
        return "–"
    return f"{parameters * 4 / 1e6:,.2f} / {parameters * 2 / 1e6:,.2f} MB"
