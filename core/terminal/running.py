"""`test-run` and `infer`: models on any images, and whole folders through one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.compare import METRICS
from core.data_runs import DataRun
from core.errors import CoreError
from core.inference import TABLE, Inference
from core.model_manager import ModelManager
from core.specs import DataRunSpec, InferSpec
from core.terminal import output
from core.terminal.options import spec_values, with_options


def register(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command("test-run")(with_options(run_on_data, DataRunSpec))
    app.command("infer")(with_options(infer, InferSpec, ("out",)))


def run_on_data(
    models: Annotated[list[str], typer.Argument(help="Ids, names or aliases.")],
    listed: Annotated[bool, typer.Option("--list", help="Only list what was run before.")] = False,
    spec: Annotated[Path | None, typer.Option(help="JSON or TOML file with the settings.")] = None,
    **options: Any,
) -> None:
    """Measure models on any images (hub, parquet, folder), beside their pinned figures and never mixed with them."""
    from core.terminal.app import state  # which registers this module's verbs

    manager = state.manager()
    rows = [manager.get_model(ref) for ref in models]
    ids = [row.id for row in rows]
    jobs = [] if listed else manager.run_on_data(ids, spec_values(DataRunSpec, options, spec))
    if state.detach and jobs:
        output.emit([job.to_json() for job in jobs]) if state.json else output.console.print(f"{len(jobs)} jobs queued")
        return
    for job in jobs:
        output.follow(manager, job, quiet=state.json)
    found = manager.data_runs(ids)
    if state.json:
        pinned = {row.id: manager.get_model_metrics(row.id) for row in rows}
        output.emit({"runs": [one.to_json() for one in found], "pinned": pinned})
        return
    show_runs(manager, ids, found)


def show_runs(manager: ModelManager, ids: list[str], found: list[DataRun]) -> None:
    """The pinned figures first, then one table for each data set; columns are models."""
    comparison = manager.compare(ids)
    names = {model.id: model.name for model in comparison.models}
    pinned = {ref: {key: figure.value for key, figure in own.items()} for ref, own in comparison.figures.items()}
    p = comparison.protocol
    tables = [(f"Pinned: {p['num_images']} images of {p['source']}, {p['image_size']} px", pinned)] if p else []
    tables += [(f"Test run {one.id}: {one.title}", {ref: row.means for ref, row in one.models.items()}) for one in found]
    if not tables:
        output.console.print("Nothing was measured yet.")
    for title, figures in tables:
        refs = [ref for ref in ids if ref in figures]
        keys = [
            key
            for key, metric in METRICS.items()
            if metric.source == "scores" and any(figures[ref].get(key) is not None for ref in refs)
        ]
        table = Table("", *(names[ref] for ref in refs), header_style="bold", title=title, title_justify="left")
        for key in keys:
            table.add_row(METRICS[key].title, *(METRICS[key].text(figures[ref].get(key)) for ref in refs))
        output.console.print(table)


def infer(
    model: Annotated[str, typer.Argument(help="Id, name or alias.")],
    folder: Annotated[Path | None, typer.Argument(help="Folder of images; or name other data with --data.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that the job makes; default: one in the store.")] = None,
    spec: Annotated[Path | None, typer.Option(help="JSON or TOML file with the settings.")] = None,
    **options: Any,
) -> None:
    """Reconstruct every image of a folder: pictures, a CSV of figures, latents on request. Whole or not at all."""
    from core.terminal.app import finish, state

    manager = state.manager()
    row = manager.get_model(model)
    values = spec_values(InferSpec, options, spec)
    if folder is not None:
        if "data" in values:
            raise CoreError("Name a folder, or data, not both.", code="bad_spec", given=[str(folder), values["data"]])
        values["data"] = {"kind": "folder", "location": str(folder.expanduser().resolve())}
    if out is not None:
        values["out"] = str(out)
    job = manager.infer(row.id, values)
    if state.detach:
        finish(manager, job)
        return
    output.follow(manager, job, quiet=state.json)
    made = manager.inference(job.id)
    output.emit(made.to_json()) if state.json else show_inference(made)


def show_inference(made: Inference) -> None:
    """Where the files are, and the means."""
    broken = f", {made.num_broken} broken" if made.num_broken else ""
    output.console.print(f"{made.num_images} images{broken}: {made.out / TABLE}", markup=False, highlight=False)
    said = ", ".join(f"{METRICS[key].title} {METRICS[key].text(value)}" for key, value in made.means.items())
    output.console.print(f"Means: {said}.", markup=False, highlight=False)
