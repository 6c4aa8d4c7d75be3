"""Verbs for retrainings that run or stand still: their checkpoints, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.errors import CoreError
from core.model_manager import ModelManager
from core.specs import ResetSpec, RetrainSpec
from core.terminal import output
from core.terminal.options import spec_values, with_options
from core.training import cleaning_rule
from store import JobRow

JobArgument = Annotated[str, typer.Argument(help="A retraining's id.")]
ModelArgument = Annotated[str, typer.Argument(help="Id, name or alias.")]
At = Annotated[str, typer.Option(help="best, last, or the step of a checkpoint.")]


def register(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command("checkpoints")(list_checkpoints)
    app.command("branch")(branch)
    app.command("rewrite")(rewrite)
    app.command("assist")(assist)
    app.command("reset")(with_options(reset, ResetSpec))
    app.command("train-on")(with_options(train_on, RetrainSpec))
    app.command("retrain-in-phases")(with_options(retrain_in_phases, RetrainSpec, skip=("frozen_part", "frozen_stages")))


def list_checkpoints(job: JobArgument) -> None:
    """Checkpoints of a retraining: step, figures, bytes, why they were written and why they stay."""
    from core.terminal.app import state  # which registers this module's verbs

    manager = state.manager()
    found = manager.checkpoints(job)
    if state.json:
        output.emit([checkpoint.to_json() for checkpoint in found])
        return
    table = Table("step", "written", "size", "written because", "kept because", "figures", header_style="bold")
    for c in found:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in c.figures.items())
        table.add_row(f"{c.step}", c.created[:19].replace("T", " "), f"{c.bytes / 2**20:.1f} MiB", c.why, c.kept, figures)
    output.console.print(table)
    if found and found[0].best_step is not None:
        output.console.print(f"Best weights so far: of step {found[0].best_step}.", highlight=False)
    output.console.print(cleaning_rule(RetrainSpec.model_validate(manager.job(job).spec)), highlight=False)


def branch(
    job: JobArgument,
    at: At = "last",
    name: Annotated[str | None, typer.Option(help="Name of the new model.")] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Evaluate it, as its family was last evaluated.")] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the current model.")] = False,
) -> None:
    """Make a model of a checkpoint; the retraining itself stays as it is."""
    from core.terminal.app import finish, state

    manager = state.manager()
    made = manager.branch(job, at, name=name)
    chain: list[JobRow] = [made]
    if evaluate:
        chain.append(manager.evaluate_model({"job": made.id}, manager.evaluation_for(str(made.parent_model_id))))
    if promote and not state.detach:
        model = output.follow(manager, made, quiet=state.json).model_id
        manager.promote(str(model))
    if evaluate and not state.detach:
        output.follow(manager, chain[-1], quiet=state.json)
    finish(manager, made)


def finish_at_pause(manager: ModelManager, job: JobRow) -> None:
    """Waits (unless detached) for a training that pauses at a step, ends it there and tells which it is; one without a pause, as ever."""
    from core.terminal.app import finish, state

    if state.detach or job.pause_step is None:
        finish(manager, job)
        return
    row = output.follow(manager, job, quiet=state.json, wait=manager.end_at_pause)
    if state.json:
        output.emit({"job": row.to_json(), "model": None})
        return
    said = f"{row.id}  ended at step {job.pause_step}. A model of it: branch {row.id} --at {job.pause_step}"
    output.console.print(said, markup=False, highlight=False)


def train_on(job: JobArgument, at: At = "last", name: str | None = None, spec: Path | None = None, **options: Any) -> None:
    """Train on from a checkpoint with other settings, as a new child; the retraining JOB stays as it was."""
    from core.terminal.app import finish, state

    manager = state.manager()
    chain = manager.train_on(job, spec_values(RetrainSpec, options, spec), at=at, name=name)
    if not state.detach:
        output.follow(manager, chain[0], quiet=state.json)
    finish(manager, chain[-1])


def retrain_in_phases(
    model: ModelArgument = "current",
    high_size: Annotated[int | None, typer.Option(help="Image size of the second phase; default: twice the others'.")] = None,
    preset: Annotated[str | None, typer.Option(help="Start from smoke, quick or full; options and spec file win.")] = None,
    spec: Path | None = None,
    **options: Any,
) -> None:
    """Train in the paper's three phases, each a model: all; then what touches the latents, at high resolution; then the decoder's end."""
    from core.terminal.app import finish, state

    manager = state.manager()
    values = spec_values(RetrainSpec, options, spec)
    chain = manager.retrain_in_phases(manager.get_model(model).id, values, high_size=high_size, preset=preset)
    if not state.detach:
        for job in chain[:-1]:
            output.follow(manager, job, quiet=state.json)
    finish(manager, chain[-1])


def assist(
    rendezvous: Annotated[str, typer.Argument(help="HOST:PORT: the setting `rendezvous` of the job's own machine.")],
    processes: Annotated[int, typer.Option(min=2, help="As in the retraining: processes on all machines together.")] = 2,
    machines: Annotated[int, typer.Option(min=2, help="As in the retraining.")] = 2,
    machine: Annotated[int, typer.Option(min=1, help="Which one this is; the job's own is 0.")] = 1,
) -> None:
    """Train along in one retraining of another machine: this one's share of its processes. It touches no store of this machine."""
    from core.devices import default_device
    from core.jobs.ranks import start_ranks
    from core.terminal.app import state

    if processes % machines or machine >= machines:
        raise CoreError(
            f"Machine {machine} of {machines} has no share of {processes} processes.", code="processes", given=processes,
            legal=f"processes that divide by {machines}; machines 1 to {machines - 1}",
        )  # fmt: skip
    settings = state.settings.model_copy(update={"rendezvous": rendezvous})
    start_ranks(settings, default_device(settings.device), processes=processes, machines=machines, machine=machine)


def rewrite(
    folder: Annotated[Path, typer.Argument(help="Old weights: .pt, .pth or .safetensors files.")],
    target: Annotated[Path, typer.Argument(help="Where the new files go; nothing is overwritten.")],
) -> None:
    """Rewrite a folder of old weight files to the present format, and say what was converted."""
    from core.rewriting import rewrite_folder  # loads torch
    from core.terminal.app import state

    found = rewrite_folder(folder, target)
    if state.json:
        output.emit([one.__dict__ for one in found])
    else:
        for one in found:
            told = "; ".join(one.notes) or "as it was"
            output.console.print(f"{one.source} -> {one.target or 'not rewritten'}: {told}", markup=False, highlight=False)
    if any(one.target is None for one in found):
        raise typer.Exit(1)


def reset(model: ModelArgument = "current", name: str | None = None, spec: Path | None = None, **options: Any) -> None:
    """Make a model of which some layers have new weights: random, or the parent's or baseline's (--layers '["decoder.conv_out"]')."""
    from core.terminal.app import finish, state

    manager = state.manager()
    finish(manager, manager.reset_layers(manager.get_model(model).id, spec_values(ResetSpec, options, spec), name=name))
