"""`diff`, `layers` and `activations`: two models unit by unit, one model layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.errors import CoreError
from core.layers import Activations, Layer
from core.specs import ActivationsSpec
from core.terminal import output
from core.terminal.options import spec_values, with_options
from core.unit_diff import ModelDiff, SiteDiff, ranges

Model = Annotated[str, typer.Argument(help="Id, name or alias.")]
BARS = " ▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command("diff")(diff)
    app.command("layers")(layers)
    app.command("activations")(with_options(activations, ActivationsSpec))


def diff(
    first: Model,
    second: Model,
    site: Annotated[str | None, typer.Option(help="One site, with its units from the most changed on.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Sites or units listed.")] = 20,
) -> None:
    """Two models unit by unit: which units both have and how far their weights moved, and which only one has."""
    from core.terminal.app import state  # which registers this module's verbs

    manager = state.manager()
    found = manager.unit_diff(first, second)
    known = {one.site: one for one in found.sites}
    if site is not None and site not in known:
        raise CoreError(f"The models have no site {site!r}.", code="unknown_site", given=site, legal=list(known))
    if state.json:
        output.emit(found.to_json() if site is None else known[site].to_json())
        return
    _say(f"{found.first.name} against {found.second.name}. A change of 0 is none, 1 lies between a unit and nothing.")
    for note in found.notes:
        output.console.print(note, style="yellow", markup=False, highlight=False)
    _show_units(found, known[site], limit) if site is not None else _show_sites(found, limit)


def _table(*columns: str) -> Table:
    """Names are never cut; a narrow terminal folds them."""
    table = Table(header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number > 0)
    return table


def _say(text: str) -> None:
    output.console.print(text, markup=False, highlight=False)


def _show_sites(found: ModelDiff, limit: int) -> None:
    both, first, second = found.counts
    _say(f"{both:,} units in both, {first:,} only in the first, {second:,} only in the second; a row is a site.")
    if found.identical:
        _say("Every weight is the same.")
        return
    table = _table("site", "both", "first", "second", "change", "0 ... 1")
    for one in found.by_change[:limit]:
        table.add_row(
            one.site, str(len(one.units)), str(len(one.only_first)), str(len(one.only_second)), f"{one.mean:.3f}",
            spark([int(((one.change >= low / 10) & (one.change < (low + 1) / 10)).sum()) for low in range(10)]),
        )  # fmt: skip
    output.console.print(table)
    if len(found.sites) > limit:
        _say(f"{len(found.sites) - limit} more sites changed less (--limit).")


def _show_units(found: ModelDiff, one: SiteDiff, limit: int) -> None:
    table = _table("unit", "change", "norm in first", "in second")
    _say(f"{one.site}: {len(one.units)} of {one.total} units in both.")
    for place in one.order[:limit]:
        table.add_row(str(one.units[place]), f"{one.change[place]:.3f}", *(f"{norm:.4g}" for norm in one.norms[place]))
    output.console.print(table)
    for row, units in ((found.first, one.only_first), (found.second, one.only_second)):
        if units:
            _say(f"Only in {row.name}: {ranges(units)}.")


def layers(model: Model = "current") -> None:
    """Each layer's width before any pruning and now, how much of it is zero, and how its weights are spread."""
    from core.terminal.app import state

    manager = state.manager()
    found, active = manager.layers(model), manager.activations(model)
    if state.json:
        acts = None if active is None else {"protocol": active.protocol, "layers": [x.__dict__ for x in active.layers.values()]}
        output.emit({"layers": [layer.to_json() for layer in found], "activations": acts})
        return
    _show_layers(found, active)


def activations(model: Model = "current", spec: Path | None = None, **options: Any) -> None:
    """Measure what comes out of each layer over some images; `layers` shows it beside the weights."""
    from core.terminal.app import finish, state

    manager = state.manager()
    row = manager.get_model(model)
    job = manager.measure_activations(row.id, spec_values(ActivationsSpec, options, spec))
    finish(manager, job)
    if not state.json and not state.detach:
        _show_layers(manager.layers(row.id), manager.activations(row.id))


def _show_layers(found: list[Layer], active: Activations | None) -> None:
    acts = ("activations", "dead") if active else ()
    table = _table("layer", "out x in", "zero", "weights", *acts)
    for layer in found:
        cells = [
            f"{widths(layer, 0)} x {widths(layer, 1)}",
            f"{layer.sparsity:.0%}" if layer.zeros else "",
            spark(layer.histogram, 12),
        ]
        if active is not None:
            own = active.layers.get(layer.name)
            cells += ["", ""] if own is None else [spark(own.histogram, 12), f"{own.dead}" if own.dead else ""]
        table.add_row(*cells)
    output.console.print(table)
    if active is not None:
        _say(f"Activations: {active.title}.")


def widths(layer: Layer, dim: int) -> str:
    """A side of a layer, before any pruning and now."""
    before, after = layer.before[dim], layer.after[dim]
    return str(after) if before == after else f"{before}→{after}"


def spark(counts: list[int] | tuple[int, ...], steps: int | None = None) -> str:
    """Counts as a line of bars, joined to `steps` of them; the highest is full, and what is not zero is seen."""
    if steps is not None:
        counts = [sum(counts[i * len(counts) // steps : (i + 1) * len(counts) // steps]) for i in range(steps)]
    most = max(counts, default=0) or 1
    return "".join(BARS[0 if count == 0 else max(1, round(count / most * (len(BARS) - 1)))] for count in counts)
