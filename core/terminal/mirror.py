"""`python -m core mirror status | sync`: the Weights & Biases mirror on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core import mirror
from core.terminal import output

app = typer.Typer(help="The Weights & Biases mirror: a one-way replay of the store.", no_args_is_help=True)

Mode = Annotated[str | None, typer.Option(help="auto, off, offline or online [OFFSHOOT_MIRROR].")]
Folder = Annotated[Path | None, typer.Option(help="Where offline runs are written; default: mirror in the store's folder.")]


@app.command()
def status(mode: Mode = None, folder: Folder = None) -> None:
    """How many runs were sent, how many wait, and why."""
    from core.terminal.app import state  # the parent of this sub-app: importing it above would go in a circle

    found = mirror.status(state.manager().store, mode or state.settings.mirror, folder, project=state.settings.wandb_project)
    if state.json:
        output.emit(found.to_json())
        return
    text = f"Mirror {found.mode}: {found.num_sent} sent, {found.num_waiting} waiting. {found.message}"
    output.console.print(text, markup=False, highlight=False)
    if found.problem is not None:
        output.show_error(found.problem)


@app.command()
def sync(
    model: Annotated[str | None, typer.Argument(help="Only the branch that leads to this model; default: everything.")] = None,
    mode: Mode = None,
    folder: Folder = None,
) -> None:
    """Send every finished job that was not sent yet."""
    from core.terminal.app import state

    store, chosen, project = state.manager().store, mode or state.settings.mirror, state.settings.wandb_project
    if model is None:
        report = mirror.sync(store, chosen, folder, project=project)
    else:
        report = mirror.mirror_branch(store, model, chosen, folder, project=project)
    if report.problem is not None:
        output.emit_error(report.problem) if state.json else output.show_error(report.problem)
        raise typer.Exit(1)
    if state.json:
        output.emit(report.to_json())
        return
    for line in (report.message, *report.notes):
        output.console.print(line, markup=False, highlight=False)
