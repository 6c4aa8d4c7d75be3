"""What a terminal shows: tables and progress for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import store.jobs as jobs
from core.compare import MAIN_METRICS, METRICS, Comparison
from core.cost import SWEEP_TITLE, conditions_text, cost_lines, sweep_rows
from core.errors import CoreError, legal_text
from core.exports import Export
from core.model_manager import ModelManager
from core.outcomes import Outcome
from core.planning import Proposal
from core.solver.sensitivity import TOGETHER, SensitivityTable
from store import JobRow

JSON_VERSION = 1
console = Console()
problems = Console(stderr=True)


def emit(data: Any) -> None:
    """`{"v": 1, "ok": true, "data": ...}` on stdout."""
    sys.stdout.write(json.dumps({"v": JSON_VERSION, "ok": True, "data": data}, default=str) + "\n")


def emit_error(error: dict[str, Any]) -> None:
    """`{"v": 1, "ok": false, "error": ...}` on stdout."""
    sys.stdout.write(json.dumps({"v": JSON_VERSION, "ok": False, "error": error}, default=str) + "\n")


def show_error(error: dict[str, Any]) -> None:
    """One line for people, on stderr."""
    message = str(error["message"])
    parts = [message if message.endswith((".", "!", "?")) else f"{message}."]
    if legal := legal_text(error.get("legal")):
        parts.append(f"Legal: {legal}.")
    if error.get("next"):
        parts.append(str(error["next"]))
    problems.print(" ".join(parts), style="red", markup=False, highlight=False)


def show_warnings(manager: ModelManager, job: JobRow) -> None:
    """What a job warned of, each once, on stderr."""
    for said in dict.fromkeys(line["message"] for line in manager.log(job.id) if line["level"] == "warning"):
        problems.print(said, style="yellow", markup=False, highlight=False)


def outcome_lines(job: JobRow) -> list[str]:
    """What a person should hear of a finished job besides its model: what an import converted, where and why a training ended early."""
    result = job.result
    early = [f"It ended at step {result['steps']}: {result['stopped']}."] if result.get("stopped") else []
    return [*result.get("notes", []), *early]


def follow(manager: ModelManager, job: JobRow, *, quiet: bool, wait: Callable[..., JobRow] | None = None) -> JobRow:
    """Waits for a job with a progress bar (by default until it is done); raises the job's own error."""
    wait = wait or manager.wait
    if quiet:
        return wait(job.id)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn(),
        console=problems, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task(job.name, total=1.0, said="")
        while True:
            try:
                return wait(job.id, timeout_s=0.3)
            except CoreError as error:
                if error.code != "timeout":
                    raise
            row = jobs.get_job(manager.store, job.id)
            progress.update(task, completed=row.fraction, said=row.message or row.state)


def comparison_table(comparison: Comparison) -> Table:
    """Rows are figures, columns models; with changes against the baseline."""
    table = Table(title=None, header_style="bold")
    table.add_column("")
    for model in comparison.models:
        table.add_column(model.name, justify="right")
    for key, metric in MAIN_METRICS.items():
        cells = []
        for model in comparison.models:
            figure = comparison.figures[model.id][key]
            text = metric.text(figure.value)
            change = figure.against_baseline
            if change is not None:
                better = figure.better(change)
                colour = {True: "green", False: "red", None: "dim"}[better]
                text += f" [{colour}]{figure.change_text(change)}[/]"
            cells.append(text)
        if any(comparison.figures[m.id][key].value is not None for m in comparison.models):
            table.add_row(metric.title, *cells)
    return table


def show_comparison(comparison: Comparison) -> None:
    """The table, what it was measured on, and what could not be compared."""
    console.print(comparison_table(comparison))
    if comparison.protocol:
        p = comparison.protocol
        kind = "images (a test run)" if "run" in p else "test images"
        console.print(f"Quality: {p['num_images']} {kind} of {p['source']}, {p['image_size']} px, {p['dtype']}.")
    if comparison.measurement:
        text = f"Cost: {conditions_text(comparison.measurement)} Medians; changes are against the baseline."
        console.print(text, markup=False, highlight=False)
    for note in comparison.notes:
        console.print(note, style="yellow")


def show_cost(comparison: Comparison) -> None:
    """Latency with its tail, memory, start-up and bytes, and throughput over sizes where it was measured."""
    names = [model.name for model in comparison.models]
    for title, lines in (("Cost", cost_lines(comparison)), (SWEEP_TITLE, sweep_rows(comparison))):
        if not lines:
            continue
        table = Table("", *names, header_style="bold", title=title, title_justify="left")
        for line in lines:
            table.add_row(line.title, *(line.cells[model.id] for model in comparison.models))
        console.print(table)


def show_sensitivity(table: SensitivityTable) -> None:
    """Rows are knobs, columns rates, cells the decibels that pruning the knob alone loses; last all of them together."""
    metric = table.metrics[0]
    made = Table("", *(f"{rate:g}" for rate in sorted({cell.rate for cell in table.cells})), header_style="bold")
    for knob in (*table.knobs, *([TOGETHER] if table.together else [])):
        cells = sorted((cell for cell in (*table.cells, *table.together) if cell.knob == knob), key=lambda cell: cell.rate)
        made.add_row(knob, *(f"{cell.figures[metric] - table.whole[metric]:+.2f}" for cell in cells))
    console.print(made)
    console.print(f"{METRICS[metric].title} in dB against {table.whole[metric]:.2f} of the whole model.", highlight=False)


def _title(key: str) -> str:
    """What a predicted figure is called: the bytes are those of all tensors, without a file's header."""
    return "Weights" if key == "weight_bytes" else METRICS[key].title


def show_proposal(proposal: Proposal) -> None:
    """What a solved pruning is predicted to bring, and the rates that do it."""
    before, after = proposal.solution.before, proposal.solution.after
    table = Table("", "now", "predicted", "change", header_style="bold")
    for key, value in after.items():
        table.add_row(_title(key), METRICS[key].text(before[key]), METRICS[key].text(value), proposal.change(key))
    console.print(table)
    rates = {name: rate for name, rate in proposal.spec.site_rates.items() if rate}
    console.print(", ".join(f"{name} {rate:g}" for name, rate in rates.items()), highlight=False)
    console.print(
        f"Quality: in one shot, before any retraining, on validation images. {proposal.latency_text()}", highlight=False
    )


def show_outcome(outcome: Outcome) -> None:
    """What was predicted and what was made, each as a change from the parent."""
    table = Table("", "predicted", "achieved", "", header_style="bold")
    for key, (_, after) in outcome.achieved.items():
        table.add_row(_title(key), *outcome.changes(key), METRICS[key].text(after))
    console.print(table)
    console.print("Achieved: counted, or measured of both models in one run; quality on test images.", highlight=False)
    console.print(f"{outcome.model.id}  {outcome.model.name}", highlight=False)


def show_export(export: Export) -> None:
    """What was written, how near it is to the model, and how fast."""
    check, timed = export.check, export.benchmark
    lines = [export.title, *(f"  {file['name']}  {file['bytes'] / 1e6:.2f} MB" for file in export.files)]
    lines.append(
        f"  {check['psnr_to_model_db']:.1f} dB from the model on {check['num_images']:.0f} images; PSNR {check['psnr_db']:.2f} dB, the "
        f"model's {check['model_psnr_db']:.2f} dB"
    )
    for part in ("encode", "decode"):
        if f"export_{part}_ms" in timed:
            lines.append(
                f"  {part} {timed[f'export_{part}_ms']:.2f} ms in {timed['runtime']}, {timed[f'model_{part}_ms']:.2f} ms in torch"
            )
    for line in lines:
        console.print(line, markup=False, highlight=False)
    console.print("Checked: good." if export.good else "Not good: " + " ".join(export.reasons), markup=False, highlight=False)


def lineage_lines(manager: ModelManager) -> list[tuple[int, Any]]:
    """(depth, model) of every model, each under its parent, oldest first."""
    models = list(reversed(manager.list_models()))
    children: dict[str | None, list[Any]] = {}
    known = {model.id for model in models}
    for model in models:
        children.setdefault(model.parent_id if model.parent_id in known else None, []).append(model)
    lines: list[tuple[int, Any]] = []
    stack = [(0, model) for model in reversed(children.get(None, []))]
    while stack:
        depth, model = stack.pop()
        lines.append((depth, model))
        stack += [(depth + 1, child) for child in reversed(children.get(model.id, []))]
    return lines


def jobs_table(rows: Sequence[JobRow]) -> Table:
    """Id, name, state, progress of jobs."""
    table = Table("job", "name", "operation", "state", "", "message")
    for row in rows:
        table.add_row(row.id, row.name, row.operation, row.state, f"{row.fraction:.0%}", row.message)
    return table
