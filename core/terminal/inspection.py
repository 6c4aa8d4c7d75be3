"""`python -m core inspect`, `image-losses`, `tag-images`, `slices`: single images on a terminal, and groups of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.image_losses import LOSS_ORDERS, tagged
from core.inspection import ORDERS
from core.specs import InspectSpec
from core.terminal import output
from core.terminal.options import spec_values, with_options


def register(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command("inspect")(with_options(inspect, InspectSpec))
    app.command("image-losses")(image_losses)
    app.command("tag-images")(tag_images)
    app.command("slices")(slices)


def inspect(
    model: Annotated[str, typer.Argument(help="Id, name or alias.")] = "current",
    order: Annotated[str, typer.Option(help=f"How images are listed: {', '.join(ORDERS)}.")] = "worst",
    duplicates: Annotated[bool, typer.Option("--duplicates", help="List only images that nearly equal an earlier one.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Images listed.")] = 20,
    spec: Path | None = None,
    **options: Any,
) -> None:
    """Look at every image of a data set: the worst, those that got worse than the parent's, near-duplicates."""
    from core.terminal.app import finish, state  # which registers this module's verb

    manager = state.manager()
    row = manager.get_model(model)
    job = manager.inspect_images(row.id, spec_values(InspectSpec, options, spec))
    if state.detach:
        finish(manager, job)
        return
    output.follow(manager, job, quiet=state.json)
    table = manager.image_table(row.id)
    assert table is not None
    rows = table.rows(order, duplicates=duplicates, limit=limit)  # type: ignore[arg-type]
    if state.json:
        output.emit({"num_images": len(table.row_ids), "broken": list(table.broken), "images": rows})
        return
    shown = Table("row", "PSNR (dB)", "against the parent", "nearly equals", header_style="bold")
    for image in rows:
        change = f"{image['change_db']:+.2f}" if "change_db" in image else ""
        shown.add_row(image["row"], f"{image['psnr_db']:.2f}", change, image["nearly_equals"])
    output.console.print(shown)
    output.console.print(f"{len(table.row_ids)} images; {len(table.broken)} broken.", highlight=False)


def image_losses(
    job: Annotated[str, typer.Argument(help="A retraining's id.")],
    order: Annotated[str, typer.Option(help=f"How images are listed: {', '.join(LOSS_ORDERS)}.")] = "worst",
    containing: Annotated[str, typer.Option(help="Only images with this text in their row id or tags.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Images listed.")] = 20,
) -> None:
    """How each training image fared in a retraining, while it runs or afterwards: first, last and mean loss, and when it was drawn."""
    from core.terminal.app import state

    manager = state.manager()
    table = manager.image_losses(job)
    found = [] if table is None else table.rows(order)  # type: ignore[arg-type]
    rows = tagged(found, manager.training_tags(manager.job(job).spec), containing, limit)
    if state.json:
        output.emit({"num_images": 0 if table is None else len(table.row_ids), "images": rows})
        return
    if table is None:
        output.console.print("No image was drawn before its last validation.", highlight=False)
        return
    shown = Table("row", "mean loss", "last loss", "first loss", "last drawn at step", "times drawn", "tags", header_style="bold")
    for image in rows:
        losses = (f"{image[f'{name}_loss']:.4f}" for name in ("mean", "last", "first"))
        shown.add_row(image["row"], *losses, str(image["step"]), str(image["count"]), image["tags"])
    output.console.print(shown)
    output.console.print(f"{len(table.row_ids)} images were drawn.", highlight=False)


def tag_images(
    job: Annotated[str, typer.Argument(help="A retraining's id: the rows are of its data sets, drawn or not.")],
    rows: Annotated[list[str], typer.Argument(help="Row ids, as image-losses and inspect list them.")],
    tag: Annotated[str, typer.Option(help="The word.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take it off.")] = False,
) -> None:
    """Put a word on images of a data set: it stays with them in every list, whatever the model."""
    from core.terminal.app import state

    manager = state.manager()
    spec = manager.job(job).spec
    manager.tag_training(spec, rows, tag, remove=remove)
    told = {row: list(words) for row, words in manager.training_tags(spec).items() if row in rows}
    if state.json:
        output.emit(told)
    else:
        output.console.print(f"{len(rows)} images {'without' if remove else 'with'} the tag {tag!r}.", highlight=False)


def slices(job: Annotated[str, typer.Argument(help="A retraining's id.")]) -> None:
    """The last validation of a retraining by slice: thirds of the images by contrast, and each data set where there are several."""
    from core.terminal.app import state

    found = state.manager().slice_table(job)
    if state.json:
        output.emit(found)
        return
    shown = Table("slice", "PSNR (dB)", "loss", header_style="bold")
    for row in found:
        shown.add_row(row["slice"], f"{row['psnr_db']:.2f}", f"{row['loss']:.4f}")
    output.console.print(shown)
