"""`compare` and `report`: figures side by side, differences paired by image, the Pareto front and a ranking on a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.choice import Front, Ranking
from core.compare import METRICS, Comparison
from core.cost import under
from core.errors import CoreError
from core.quality import Quality, difference_text, interval_text, shown_metrics
from core.reporting import FORMATS
from core.terminal import output


def compare_models(
    models: list[str],
    reference: Annotated[str | None, typer.Option(help="Model that differences are to; default: the first baseline.")] = None,
    front: Annotated[str, typer.Option(help="Two figures for the Pareto front, with a comma.")] = "decode_ms,psnr_db",
    weights: Annotated[
        str | None, typer.Option(help='Rank by these: \'{"psnr_db": 2, "decode_ms": 1}\' (the directions are known).')
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Quality of this test run (`test-run` names it), not of the pinned images.")
    ] = None,
    run: Annotated[
        int | None, typer.Option(help="Costs of this benchmark run; default: the newest of those with most of the models.")
    ] = None,
) -> None:
    """Figures of models side by side: with intervals, paired differences, the Pareto front, and a ranking where weights are given."""
    from core.terminal.app import state  # the parent of this verb: importing it above would go in a circle

    manager = state.manager()
    wanted = None if weights is None else _weights(weights)
    axes = [part.strip() for part in front.split(",")]
    if len(axes) != 2:
        raise CoreError("A front is over two figures.", code="metric", given=front, legal="two, such as decode_ms,psnr_db")
    comparison = manager.compare(models, run)
    if on is not None:
        comparison = manager.compare_on(comparison, on)
    found = manager.quality(comparison, reference)
    best = manager.pareto(comparison, *axes)
    ranked = None if wanted is None else manager.rank(comparison, wanted)
    if state.json:
        output.emit(
            {
                **comparison.to_json(),
                "quality": found.to_json(),
                "front": {"over": axes, "best": best.best, "beaten_by": best.beaten_by, "left_out": best.left_out},
                "ranking": None if ranked is None else _ranking_json(ranked),
            }
        )
        return
    output.show_comparison(comparison)
    output.show_cost(comparison)
    show_quality(comparison, found)
    _show_front(comparison, best, axes)
    if ranked is not None:
        _show_ranking(comparison, ranked)


def report(
    models: Annotated[list[str], typer.Argument(help="Ids, names or aliases; of one model only, its branch is reported.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "html",
    out: Annotated[Path, typer.Option(help="File or folder to write to; never overwritten.")] = Path("."),
    run: Annotated[int | None, typer.Option(help="Costs of this benchmark run; not of a branch.")] = None,
) -> None:
    """Write a report: of the models given, or of one model's branch of the lineage."""
    from core.terminal.app import state

    manager = state.manager()
    if run is not None and len(models) == 1:
        raise CoreError(
            "A branch is reported with its newest benchmark run: name two models or more for another.", code="run", given=run
        )
    path = manager.save_report([manager.get_model(ref).id for ref in models], out, form, branch=len(models) == 1, run=run)
    output.emit({"path": str(path)}) if state.json else output.console.print(str(path), markup=False, highlight=False)


def _weights(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
        return {str(key): float(value) for key, value in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CoreError(
            f"These weights are no JSON object of numbers: {error}",
            code="weight",
            given=text,
            legal='{"psnr_db": 2, "decode_ms": 1}',
        ) from error


def _ranking_json(found: Ranking) -> dict[str, Any]:
    ranked = [{"id": one.id, "place": one.place, "score": one.score, "parts": dict(one.parts)} for one in found.ranked]
    return {"ranked": ranked, "left_out": {ref: list(keys) for ref, keys in found.left_out.items()}}


def show_quality(comparison: Comparison, found: Quality) -> None:
    """Means with intervals, and what each model's paired difference to the reference says."""
    models = comparison.models
    keys = shown_metrics(found, [m.id for m in models])
    if not keys:
        return
    names = {m.id: m.name for m in models}
    table = Table("", *(m.name for m in models), header_style="bold", title="95 % intervals over images", title_justify="left")
    for key in keys:
        cells = [found.intervals.get(m.id, {}).get(key) for m in models]
        table.add_row(METRICS[key].title, *("–" if one is None else interval_text(METRICS[key], one) for one in cells))
    output.console.print(table)
    for ref, own in found.differences.items():
        output.console.print(f"{names[ref]} against {names[found.reference]}, paired by image:", markup=False, highlight=False)
        for key, one in own.items():
            line = f"  {METRICS[key].title}: {difference_text(METRICS[key], one)}"
            output.console.print(line, markup=False, highlight=False)
    for note in found.notes:
        output.console.print(note, style="yellow", markup=False)


def _names(comparison: Comparison, refs: Sequence[str]) -> str:
    names = {m.id: m.name for m in comparison.models}
    return ", ".join(names[ref] for ref in refs)


def _show_front(comparison: Comparison, front: Front, axes: Sequence[str]) -> None:
    if not front.best:
        return
    titles = " and ".join(METRICS[key].title for key in axes)
    text = f"Pareto front over {titles}: {_names(comparison, front.best)}."
    text += f" {told}" if (told := under(comparison, axes)) else ""
    if front.left_out:
        text += f" Left out, as a figure is missing: {_names(comparison, front.left_out)}."
    output.console.print(text, markup=False, highlight=False)


def _show_ranking(comparison: Comparison, found: Ranking) -> None:
    names = {m.id: m.name for m in comparison.models}
    keys = list(found.ranked[0].parts) if found.ranked else []
    table = Table(
        "", "", "score", *(METRICS[key].title for key in keys), header_style="bold", title="Ranking: 1 is best of these"
    )
    for one in found.ranked:
        table.add_row(str(one.place), names[one.id], f"{one.score:.3f}", *(f"{one.parts[key]:.2f}" for key in keys))
    output.console.print(table)
    told = under(comparison, keys)
    if told:
        output.console.print(told, markup=False, highlight=False)
    for ref, lacking in found.left_out.items():
        missing = ", ".join(METRICS[key].title for key in lacking)
        output.console.print(f"Not ranked: {names[ref]} has no {missing} here.", style="yellow", markup=False)


def add_to(app: typer.Typer) -> None:
    """Adds the verbs of this file."""
    app.command("compare")(compare_models)
    app.command("report")(report)
