"""`python -m core mirror status | sync | verify | report | set`: the Weights & Biases mirror on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core import mirror
from core.mirror.verifying import verify_target
from core.mirror.views import show_models
from core.terminal import output

app = typer.Typer(help="The Weights & Biases mirror: a one-way replay of the store.", no_args_is_help=True)

Mode = Annotated[str | None, typer.Option(help="auto, off, offline or online [OFFSHOOT_MIRROR].")]
Folder = Annotated[Path | None, typer.Option(help="Where offline runs are written; default: mirror in the store's folder.")]


@app.command()
def status(mode: Mode = None, folder: Folder = None) -> None:
    """How many runs were sent, how many wait, and why."""
    from core.terminal.app import state  # the parent of this sub-app: importing it above would go in a circle

    manager = state.manager()
    chosen = manager.mirror_settings()
    found = mirror.status(manager.store, mode or chosen.mirror, folder, project=chosen.wandb_project)
    if state.json:
        output.emit(found.to_json())
        return
    text = f"Mirror {found.mode}: {found.num_sent} sent, {found.num_waiting} waiting. {found.message}"
    output.console.print(text, markup=False, highlight=False)
    if found.problem is not None:
        output.show_error(found.problem)
    if found.next_try is not None:
        output.console.print(f"Tried again at {found.next_try[:19].replace('T', ' ')} UTC.", markup=False, highlight=False)


@app.command()
def sync(
    model: Annotated[str | None, typer.Argument(help="Only the branch that leads to this model; default: everything.")] = None,
    mode: Mode = None,
    folder: Folder = None,
) -> None:
    """Send every finished job that was not sent yet."""
    from core.terminal.app import state

    manager = state.manager()
    chosen = manager.mirror_settings()
    where, project = mode or chosen.mirror, chosen.wandb_project
    if model is None:
        report = mirror.sync(manager.store, where, folder, project=project)
    else:
        report = mirror.mirror_branch(manager.store, model, where, folder, project=project)
    if report.problem is not None:
        output.emit_error(report.problem) if state.json else output.show_error(report.problem)
        raise typer.Exit(1)
    if state.json:
        output.emit(report.to_json())
        return
    for line in (report.message, *report.notes):
        output.console.print(line, markup=False, highlight=False)


@app.command()
def verify(mode: Mode = None, folder: Folder = None) -> None:
    """Read back what was sent and compare it with the store: every point, figure, id and edge."""
    from core.terminal.app import state

    manager = state.manager()
    chosen = manager.mirror_settings()
    report = verify_target(manager.store, mode or chosen.mirror, folder, project=chosen.wandb_project)
    if state.json:
        output.emit(report.to_json())
    else:
        for problem in report.problems:
            output.console.print(problem, style="red", markup=False, highlight=False)
        runs = f"{report.num_runs} runs compared, {report.num_waiting} not sent yet"
        said = f"{len(report.problems)} differences." if report.problems else "Everything is as the store has it."
        output.console.print(f"{runs}. {said}", markup=False, highlight=False)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def report(
    models: Annotated[list[str], typer.Argument(help="Ids, names or aliases of the models to compare.")],
    mode: Mode = None,
    folder: Folder = None,
) -> None:
    """A comparison as a W&B Report and a workspace view: written as files, saved to W&B where the mode sends."""
    from core.terminal.app import state

    manager = state.manager()
    chosen = manager.mirror_settings()
    made = show_models(manager.store, models, mode or chosen.mirror, folder, project=chosen.wandb_project)
    if state.json:
        output.emit(made.to_json())
        return
    for line in (*made.urls.values(), *made.files.values(), made.message):
        output.console.print(line, markup=False, highlight=False)


@app.command("set")
def set_mode(
    mode: Annotated[str, typer.Argument(help="auto, off, offline or online.")],
    project: Annotated[str | None, typer.Option(help="The W&B project.")] = None,
) -> None:
    """Choose the mirror's mode for this store; OFFSHOOT_MIRROR and offshoot.toml stand above it."""
    from core.terminal.app import state

    view = state.manager().set_mirror(mode, project)
    output.emit(view.to_json()) if state.json else output.console.print(view.line, markup=False, highlight=False)
