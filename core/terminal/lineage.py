"""What the terminal does with the lineage: make a model again, write on it, show what would go, delete, restore, clean up, move."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import CoreError
from core.reproduction import SCRIPT_KINDS, reproduction_lines
from core.terminal import output

Model = Annotated[str, typer.Argument(help="Id, name or alias.")]


def _state():
    """The options before the verb. Their module imports this one, so it is looked up when a verb runs."""
    from core.terminal.app import state

    return state


def _say(*lines: str) -> None:
    for line in lines:
        output.console.print(line, markup=False, highlight=False, soft_wrap=True)


def reproduce(model: Model = "current") -> None:
    """Run the chain that made a model again, from its baseline, and compare: bit-identical, or by how much it differs."""
    state = _state()
    manager = state.manager()
    job = manager.reproduce_model(model)
    if state.detach:
        output.emit(job.to_json()) if state.json else _say(f"{job.id} queued")
        return
    done = output.follow(manager, job, quiet=state.json)
    if state.json:
        output.emit(done.result)
        return
    _say(*reproduction_lines(done.result))
    _say("Bit-identical." if done.result["identical"] else "Not the same bits; see above.")


def script(
    model: Model = "current",
    kind: Annotated[str, typer.Option(help=f"{' or '.join(SCRIPT_KINDS)}.")] = "python",
    out: Annotated[Path | None, typer.Option(help="A new file; default: stdout.")] = None,
) -> None:
    """Write the chain that made a model as a script; on an empty store it makes the same id."""
    state = _state()
    text = state.manager().script(model, kind)
    if out is not None:
        try:
            with out.expanduser().open("x") as file:
                file.write(text)
        except FileExistsError as error:
            raise CoreError(f"{out} is there already.", code="exists", given=str(out), next="Choose another name.") from error
        except OSError as error:
            raise CoreError(f"{out} could not be written: {error}", code="write", given=str(out)) from error
    if state.json:
        output.emit({"kind": kind, "script": text, "file": str(out) if out is not None else None})
    elif out is None:
        output.console.file.write(text)


def add_to(app: typer.Typer) -> None:
    """Registers the verbs of this file."""
    for verb in (reproduce, script):
        app.command(verb.__name__)(verb)
