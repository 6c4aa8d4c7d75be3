"""What the terminal does with the lineage: make a model again, write on it, show what would go, delete, restore, clean up, move."""

from __future__ import annotations

from dataclasses import asdict
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
    else:
        output.console.print(f"{out}: {len(text.splitlines())} lines.", markup=False, highlight=False)


def annotate(
    model: Model = "current",
    note: Annotated[str | None, typer.Option(help="Replaces the note.")] = None,
    tag: Annotated[str | None, typer.Option(help="A word to put on it.")] = None,
    untag: Annotated[str | None, typer.Option(help="A word to take off it.")] = None,
    alias: Annotated[str | None, typer.Option(help="A movable name that shall point here.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
) -> None:
    """Write on a model: note, tags, alias, name; its id stays."""
    state = _state()
    row = state.manager().annotate(model, note=note, tag=tag, untag=untag, alias=alias, name=name)
    if state.json:
        output.emit(row.to_json())
        return
    _say(f"{row.id}  {row.name}")
    if row.tags:
        _say(f"tags: {', '.join(row.tags)}")
    if row.aliases:
        _say(f"aliases: {', '.join(row.aliases)}")
    if row.note:
        _say(row.note)


def delete(
    model: Annotated[str, typer.Argument(help="Id, name or alias.")],
    alone: Annotated[bool, typer.Option("--alone", help="Leave its descendants.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete a model and its descendants; `undelete` brings them back until `gc` runs."""
    state = _state()
    manager = state.manager()
    going = manager.deletion(model, alone=alone)
    gone = [] if dry_run else list(manager.delete(model, alone=alone))
    if state.json:
        output.emit({**asdict(going), "deleted": gone})
        return
    _say(f"{'Would go' if dry_run else 'Deleted'}: {', '.join(going.names)}. gc would free {going.bytes:,} bytes.")
    if going.left_behind:
        _say(f"Left: {', '.join(going.left_behind)}.")
    if going.not_made_of_it:
        _say(f"Not made of it, but learnt from it or keep its plan: {', '.join(going.not_made_of_it)}.")
    if going.jobs_in_the_way:
        _say(f"In the way: {', '.join(going.jobs_in_the_way)}; cancel them first.")
    _say(*(f"A copy stays: {copy}" for copy in going.copies))
    if not dry_run:
        _say(f"python -m core undelete {gone[-1]} brings it back.")


def undelete(model: Annotated[str | None, typer.Argument(help="Id or name; default: list what can be restored.")] = None) -> None:
    """Bring back a deleted model with all that was deleted with it; without a model: list them."""
    state = _state()
    manager = state.manager()
    if model is None:
        rows = manager.deleted_models()
        if state.json:
            output.emit([row.to_json() for row in rows])
            return
        _say(*(f"{row.id}  {row.name}  deleted {str(row.deleted)[:19]} UTC" for row in rows))
        if not rows:
            _say("Nothing that can be restored.")
        return
    back = manager.restore(model)
    output.emit(list(back)) if state.json else _say(*(f"{ref} is back" for ref in back))


def gc(dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False) -> None:
    """Make deletions final and free what nothing needs; says the bytes before and after."""
    state = _state()
    manager = state.manager()
    if dry_run:
        count, size = manager.cleanable()
        output.emit({"models": count, "bytes": size}) if state.json else _say(f"{count} deleted models, {size:,} bytes.")
        return
    found = manager.clean_up()
    if state.json:
        output.emit({**asdict(found), "bytes_freed": found.bytes_freed})
        return
    _say(*(f"{left.why}: {left.path}" for left in found.orphans))
    _say(
        f"{len(found.models)} deleted models are gone for good. Before: {found.bytes_before:,} bytes; after: {found.bytes_after:,}; "
        f"freed: {found.bytes_freed:,}."
    )


def export_branch(
    model: Model = "current",
    out: Annotated[Path, typer.Option(help="A new file, or a folder.")] = Path(),
    descendants: Annotated[bool, typer.Option("--descendants", help="With all that was made from it.")] = False,
) -> None:
    """Write a model and all that it goes back to as one archive, for another store."""
    state = _state()
    found = state.manager().export_branch(model, out, with_descendants=descendants)
    if state.json:
        output.emit(asdict(found))
    else:
        _say(f"{found.path}: {len(found.models)} models, {found.bytes:,} bytes.")


def import_branch(archive: Annotated[Path, typer.Argument(help="What export-branch wrote.")]) -> None:
    """Take an archive in, whole or not at all; ids stay, and twice changes nothing."""
    state = _state()
    found = state.manager().import_archive(archive)
    if state.json:
        output.emit(asdict(found))
    else:
        _say(f"{len(found.models)} models and {found.jobs} jobs are new; {len(found.known)} models were here already.")


def add_to(app: typer.Typer) -> None:
    """Registers the verbs of this file."""
    for verb in (reproduce, script, annotate, delete, undelete, gc, export_branch, import_branch):
        app.command(verb.__name__.replace("_", "-"))(verb)
