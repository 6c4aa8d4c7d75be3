"""From the store to a document: what was compared, how sure it is, what it looks like, and how each model came about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.choice import Front, pareto_front
from core.compare import MAIN_METRICS, METRICS, Comparison
from core.cost import SWEEP_TITLE, CostLine, conditions_text, cost_lines, sweep_rows, under
from core.quality import Quality, difference_text, interval_text, shown_metrics, verdict
from core.report.document import Block, Chart, Code, Document, Grid, Heading, Items, Picture, Point, Table, Text
from core.seeing import image_lines
from core.statistics import CONFIDENCE, FLIPS, RESAMPLES
from store import ModelRow, Store, get_models

AXES = ("decode_ms", "psnr_db")
SUMMARY = ("parameters", "weight_bytes", "decode_ms", "encode_ms", "psnr_db", "foreground_psnr_db")
MOST_IMAGES = 8


@dataclass(frozen=True)
class Findings:
    """All that a report says, before it is put into words."""

    title: str
    comparison: Comparison
    quality: Quality
    front: Front
    spec_lines: dict[str, str]
    """What made each model, in one line."""
    parent_names: dict[str, str]

    @property
    def names(self) -> dict[str, str]:
        """Each model's name, with some of its id where two have the same."""
        return self.comparison.titles


def findings(store: Store, title: str, comparison: Comparison, quality: Quality, spec_lines: dict[str, str]) -> Findings:
    """Reads what else a report needs."""
    points = {m.id: [comparison.figures[m.id][key].value for key in AXES] for m in comparison.models}
    directions = [bool(METRICS[key].higher_is_better) for key in AXES]
    parents = {row.id: row.name for row in get_models(store, {m.parent_id for m in comparison.models if m.parent_id}).values()}
    return Findings(title, comparison, quality, pareto_front(points, directions), spec_lines, parents)


def document(store: Store, found: Findings, date: str) -> Document:
    """The report as blocks. `date` is the only thing in it that is not in the store."""
    blocks: list[Block] = [*_summary(found), *_figures(found), *_quality(found), *_cost(found), *_front(found)]
    blocks += [*_pictures(store, found), *_ancestry(found), *_models(found), *_conditions(found)]
    return Document(found.title, date, tuple(blocks))


def _summary(found: Findings) -> list[Block]:
    models, names = found.comparison.models, found.names
    reference = next(m for m in models if m.id == found.quality.reference)
    lines = []
    for model in models:
        if model.id == reference.id:
            continue
        parts = []
        for key in SUMMARY:
            metric, before, after = METRICS[key], *(found.comparison.figures[ref][key].value for ref in (reference.id, model.id))
            if before is None or after is None:
                continue
            away = found.quality.differences.get(model.id, {}).get(key)
            said = f" ({verdict(metric, away)})" if away is not None else f" ({after / before - 1:+.1%})" if before else ""
            parts.append(f"{metric.title} {metric.text(before)} to {metric.text(after)}{said}")
        lines.append(f"{names[model.id]}: {'; '.join(parts)}.")
    if not lines:
        return []
    return [Heading("In short"), Text(f"Each against {names[reference.id]}."), Items(tuple(lines))]


def _figures(found: Findings) -> list[Block]:
    comparison, models = found.comparison, found.comparison.models
    rows: list[tuple[str, ...]] = []
    tones: dict[tuple[int, int], str] = {}
    for key, metric in MAIN_METRICS.items():
        figures = [comparison.figures[m.id][key] for m in models]
        if all(figure.value is None for figure in figures):
            continue
        cells = []
        for column, figure in enumerate(figures, 1):
            change = figure.against_baseline
            cells.append(metric.text(figure.value) + ("" if change is None else f", {figure.change_text(change)}"))
            better = figure.better(change)
            if better is not None:
                tones[len(rows), column] = "better" if better else "worse"
        rows.append((metric.title, *cells))
    header = ("", *(found.names[m.id] for m in models))
    told = under(comparison, METRICS)
    notes = [Text(note, warning=True) for note in comparison.notes]
    return [
        Heading("Figures"),
        Text(f"Beside each value its change against the model's own baseline. {told}"),
        Table(header, tuple(rows), tones),
        *notes,
    ]


def _quality(found: Findings) -> list[Block]:
    models, quality = found.comparison.models, found.quality
    rows: list[tuple[str, ...]] = []
    tones: dict[tuple[int, int], str] = {}
    for key in shown_metrics(quality, [m.id for m in models]):
        metric, cells = METRICS[key], []
        for column, model in enumerate(models, 1):
            own, away = quality.intervals.get(model.id, {}).get(key), quality.differences.get(model.id, {}).get(key)
            parts = [interval_text(metric, own)] if own is not None else ["–"]
            if away is not None:
                parts.append(difference_text(metric, away))
                if verdict(metric, away) in ("better", "worse"):
                    tones[len(rows), column] = verdict(metric, away)
            cells.append("\n".join(parts))
        rows.append((metric.title, *cells))
    if not rows:
        return []
    how = (
        f"Means over images with {CONFIDENCE:.0%} bootstrap intervals (BCa, {RESAMPLES:,} resamples). Below: the difference to "
        f"{found.names[quality.reference]}, paired by image, its interval, Cohen's d of the differences, and p of a two-sided sign-flip "
        f"test ({FLIPS:,} flips; all of them where images are few), Holm-corrected over the models. Frames of one episode are alike, "
        "so over new episodes the intervals would be wider."
    )
    header = ("", *(found.names[m.id] for m in models))
    notes = [Text(note, warning=True) for note in quality.notes]
    return [Heading("Is the difference real?"), Text(how), Table(header, tuple(rows), tones), *notes]


def _cost(found: Findings) -> list[Block]:
    """Latency with its tail, memory, start-up, bytes; throughput over sizes where it was measured."""
    comparison = found.comparison
    header = ("", *(found.names[m.id] for m in comparison.models))
    m = comparison.measurement
    told = (
        "Not benchmarked: bytes alone are known."
        if m is None
        else f"{conditions_text(m)} Medians, with 95th and 99th percentile."
    )
    blocks: list[Block] = [Heading("Cost"), Text(told)]
    lines, sizes = cost_lines(comparison), sweep_rows(comparison)
    blocks.append(Table(header, _cells(comparison, [line for line in lines if not line.reason])))
    blocks += [Text(f"{line.title}: {line.reason}.") for line in lines if line.reason]
    return [*blocks, Heading(SWEEP_TITLE, 3), Table(header, _cells(comparison, sizes))] if sizes else blocks


def _cells(comparison: Comparison, lines: Sequence[CostLine]) -> tuple[tuple[str, ...], ...]:
    return tuple((line.title, *(line.cells[model.id] for model in comparison.models)) for line in lines)


def _front(found: Findings) -> list[Block]:
    front, names = found.front, found.names
    if not front.best:
        return []
    drawn = [m for m in found.comparison.models if m.id not in front.left_out]
    x, y = ({m.id: float(found.comparison.figures[m.id][key].value or 0) * METRICS[key].scale for m in drawn} for key in AXES)
    points = tuple(Point(names[m.id], x[m.id], y[m.id], m.id in front.best) for m in drawn)
    titles = [f"{METRICS[key].title} ({METRICS[key].unit})" for key in AXES]
    said = f"On the Pareto front: {', '.join(names[ref] for ref in front.best)}. {under(found.comparison, AXES)}"
    if front.left_out:
        said += f" Left out, as a figure is missing: {', '.join(names[ref] for ref in front.left_out)}."
    return [Heading("Quality against cost"), Chart(titles[0], titles[1], points), Text(said)]


def _pictures(store: Store, found: Findings) -> list[Block]:
    """Rows are images, those that lose most against the reference first; columns the original and each model."""
    names, rows = found.names, []
    for line in image_lines(store, found.comparison, found.quality.reference)[:MOST_IMAGES]:
        cells = [Picture(f"original {line.index}", store.blobs.read(line.original))]
        for ref, name in names.items():
            made = line.made.get(ref)
            said = f"{line.psnr_db[ref]:.2f} dB" if made and ref in line.psnr_db else "" if made else "not evaluated"
            cells.append(Picture(f"{name}\n{said}", store.blobs.read(made) if made else None))
        rows.append(tuple(cells))
    if not rows:
        return []
    return [Heading("Images"), Text("The images that lose most against the reference come first."), Grid(tuple(rows))]


def _ancestry(found: Findings) -> list[Block]:
    lines = tree_lines(found.comparison.models)
    texts = tuple(f"{model.name} ({model.id}): {found.spec_lines[model.id]}" for _, model in lines)
    return [Heading("How they came about"), Items(texts, tuple(depth for depth, _ in lines))]


def tree_lines(models: Sequence[ModelRow]) -> list[tuple[int, ModelRow]]:
    """(depth, model), each under its parent where that is among them, in the order of their making."""
    ordered = sorted(models, key=lambda m: (m.created, m.id))
    known = {m.id for m in ordered}
    below: dict[str | None, list[ModelRow]] = {}
    for model in ordered:
        below.setdefault(model.parent_id if model.parent_id in known else None, []).append(model)
    lines: list[tuple[int, ModelRow]] = []
    stack = [(0, model) for model in reversed(below.get(None, []))]
    while stack:
        depth, model = stack.pop()
        lines.append((depth, model))
        stack += [(depth + 1, child) for child in reversed(below.get(model.id, []))]
    return lines


def _models(found: Findings) -> list[Block]:
    blocks: list[Block] = [Heading("Models")]
    for model in found.comparison.models:
        parents = ", ".join(f"{found.parent_names.get(ref, '')} {ref} ({role})".strip() for role, ref in model.parents) or "none"
        facts = {
            "id": model.id,
            "kind": f"{model.kind} ({model.family})",
            "made": model.created,
            "parents": parents,
            "job": model.job_id or "none",
            "weights (SHA-256)": model.weights_digest,
            "tags": ", ".join(model.tags) or "none",
            "note": model.note or "none",
        }
        rows = tuple((key, value) for key, value in facts.items())
        spec = json.dumps(model.spec, indent=1, sort_keys=True)
        blocks += [Heading(found.names[model.id], 3), Table(("", ""), rows), Code(spec)]
    return blocks


def _conditions(found: Findings) -> list[Block]:
    """Protocol and benchmark run, field by field: what a figure stands under."""
    blocks: list[Block] = [Heading("How it was measured")]
    for title, fields in (("Quality", found.comparison.protocol), ("Cost", found.comparison.measurement)):
        rows = () if fields is None else tuple((key, _value(value)) for key, value in sorted(fields.items()))
        blocks.append(Table((title, ""), rows) if rows else Text(f"{title}: not measured."))
    return blocks


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
