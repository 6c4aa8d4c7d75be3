"""`show`: a model's card on a terminal, as the Lineage page has it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from core.compare import METRICS
from core.terminal import output
from core.views import plain

Model = Annotated[str, typer.Argument(help="Id, name or alias.")]


def show(model: Model = "current") -> None:
    """All about one model: figures, how it came about, what changed from its parent, its job, notes, tags and copies elsewhere."""
    from core.terminal.app import state  # which registers this module's verb

    card = state.manager().card(model)
    if state.json:
        output.emit(card)
        return
    aliases = "".join(f" [{alias}]" for alias in card["aliases"])
    _say(f"{card['name']}  {card['id']}{aliases}  {card['kind']}, {card['created'][:19].replace('T', ' ')} UTC")
    for title, text in (("tags", ", ".join(card["tags"])), ("note", card["note"])):
        if text:
            _say(f"{title}: {text}")
    table = Table("figure", "value", "against parent", "against baseline", header_style="bold")
    for key, figure in card["figures"].items():
        changes = ["" if figure[to] is None else f"{figure[to]:+.1%}" for to in ("against_parent", "against_baseline")]
        table.add_row(METRICS[key].title, METRICS[key].text(figure["value"]), *changes)
    output.console.print(table)
    _say("How it came about:", *(f"  {step['name']}  {step['id']}: {step['made_by']}" for step in card["chain"]))
    _changes(card)
    job = card["job"]
    if job is not None:
        used = f": {job['machine']}" if job["machine"] else ""
        _say(f"Made by {job['operation']} {job['id']} on {job['device']}{used}. Its log: jobs {job['id']}")
    _say(f"{card['reconstructions']} reconstructions.")
    _say(*(f"Mirrored: {copy}" for copy in card["mirrored"]))


def _changes(card: dict[str, Any]) -> None:
    settings = card["settings"]
    if settings["changes"]:
        names = {step["id"]: step["name"] for step in card["chain"]}
        since = f"those of {names[settings['since']]}" if settings["since"] is not None else "the defaults"
        _say(f"Settings of {settings['operation']} that are not {since}:")
        _say(*(f"  {one['name']}: {plain(one['before'])} -> {plain(one['after'])}" for one in settings["changes"]))
    if card["widths"]:
        _say("Widths that are not the parent's:")
        _say(*(f"  {one['site']} ({one['kind']}): {one['before']} -> {one['after']}" for one in card["widths"]))


def _say(*lines: str) -> None:
    for line in lines:
        output.console.print(line, markup=False, highlight=False, soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Registers the verb."""
    app.command("show")(show)
