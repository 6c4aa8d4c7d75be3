"""The commands. Each waits for its job unless `--detach`; exit codes: 0 done, 1 the job failed, 2 the user's mistake, 3 ours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from core.errors import CoreError, as_error
from core.jobs.worker import serve
from core.model_manager import ModelManager
from core.settings import Settings, read_settings
from core.solver.search import COSTS
from core.specs import SPECS, RetrainSpec, ScheduleSpec, Spec
from core.terminal import card as card_verb
from core.terminal import compare as compare_verbs
from core.terminal import demo as demo_job
from core.terminal import inside, inspection, output, running, training
from core.terminal import lineage as lineage_verbs
from core.terminal import mirror as mirror_verbs
from core.terminal.options import common_first, spec_values, with_options
from store import JobRow

app = typer.Typer(
    help="Offshoot: prune, retrain and compare autoencoders, and keep every model's ancestry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@dataclass
class State:
    """What the common options say."""

    settings: Settings
    json: bool = False
    detach: bool = False

    def manager(self) -> ModelManager:
        return ModelManager(settings=self.settings)


state = State(Settings.model_construct())
JOB_FAILED = ("crashed", "hung", "worker_died", "not_finite", "cancelled", "out_of_memory", "disk_full", "checkpoint_write")
"""Codes of errors that came over a job or the machine: exit code 1. Any other is a mistake in what was asked: 2."""


@app.callback()
def common(
    store: Annotated[Path | None, typer.Option(help="The store's folder [OFFSHOOT_HOME].")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0 or auto [OFFSHOOT_DEVICE].")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    detach: Annotated[bool, typer.Option(help="Do not wait for the job.")] = False,
) -> None:
    """These hold for every verb, and may stand after it too (`common_first`)."""
    chosen: dict[str, Any] = {}
    if store is not None:
        chosen["home"] = store
    if device is not None:
        chosen["device"] = device
    state.settings = read_settings(**chosen)
    state.json, state.detach = json, detach


def finish(manager: ModelManager, job: JobRow) -> None:
    """Waits (unless detached) and tells what was made."""
    if state.detach:
        output.emit(job.to_json()) if state.json else output.console.print(f"{job.id} queued")
        return
    done = output.follow(manager, job, quiet=state.json)
    if state.json:
        model = manager.get_model(done.model_id).to_json() if done.model_id else None
        output.emit({"job": done.to_json(), "model": model})
        return
    output.show_warnings(manager, done)
    for said in output.outcome_lines(done):
        output.console.print(said, markup=False, highlight=False)
    if done.model_id:
        row = manager.get_model(done.model_id)
        output.console.print(f"{row.id}  {row.name}  {row.facts['parameters']:,.0f} parameters", highlight=False)


def import_model(source: str = "demo", name: str | None = None, spec: Path | None = None, **options: Any) -> None:
    """Bring a model into the store: demo, a zoo name, a hub id, a folder or a file."""
    manager = state.manager()
    values = spec_values(SPECS["import"], {"source": source, **options}, spec)
    job = manager.import_model(values.pop("source"), name=name, **values)
    finish(manager, job)


def prune(model: str = "current", name: str | None = None, spec: Path | None = None, **options: Any) -> None:
    """Make a smaller or sparser model."""
    manager = state.manager()
    finish(manager, manager.prune_model(manager.get_model(model).id, spec_values(SPECS["prune"], options, spec), name=name))


def retrain(
    model: str = "current",
    name: str | None = None,
    spec: Path | None = None,
    preset: Annotated[str | None, typer.Option(help="Start from smoke, quick or full; options and spec file win.")] = None,
    to_step: Annotated[int | None, typer.Option(help="End after so many steps, for `branch` to make a model of that.")] = None,
    **options: Any,
) -> None:
    """Train a model further."""
    manager = state.manager()
    row = manager.get_model(model)
    values = {**(manager.preset_start(row.id, preset) if preset else {}), **spec_values(SPECS["retrain"], options, spec)}
    if to_step is not None:
        training.finish_at_pause(manager, manager.retrain_to(row.id, values, to_step, name=name))
        return
    finish(manager, manager.retrain_model(row.id, values, name=name))


def evaluate(model: str = "current", spec: Path | None = None, **options: Any) -> None:
    """Measure quality on pinned test images."""
    manager = state.manager()
    row = manager.get_model(model)
    finish(manager, manager.evaluate_model(row.id, spec_values(SPECS["evaluate"], options, spec)))
    if not state.json and not state.detach:
        output.show_comparison(manager.compare([row.id]))


def benchmark(models: list[str], spec: Path | None = None, **options: Any) -> None:
    """Measure cost; all models of one call run interleaved."""
    manager = state.manager()
    rows = [manager.get_model(ref).id for ref in models]
    finish(manager, manager.benchmark_models(rows, spec_values(SPECS["benchmark"], options, spec)))
    if not state.json and not state.detach:
        comparison = manager.compare(rows)
        output.show_comparison(comparison)
        output.show_cost(comparison)


def sensitivity(model: str = "current", spec: Path | None = None, **options: Any) -> None:
    """Measure what pruning each site alone costs in quality; what `solve` goes by."""
    manager = state.manager()
    row = manager.get_model(model)
    finish(manager, manager.measure_sensitivity(row.id, spec_values(SPECS["sensitivity"], options, spec)))
    table = None if state.json or state.detach else manager.sensitivity(row.id)
    if table is not None:
        output.show_sensitivity(table)


def profile(model: str = "current", spec: Path | None = None, **options: Any) -> None:
    """Measure each block's latency over a grid of widths on this device; what `solve --cost decode_ms` goes by."""
    manager = state.manager()
    finish(manager, manager.profile_latency(manager.get_model(model).id, spec_values(SPECS["profile"], options, spec)))


def export(
    model: str = "current",
    spec: Path | None = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the files into, once they are checked.")] = None,
    **options: Any,
) -> None:
    """Write a model for use elsewhere: ONNX, torch.export, safetensors; checked against the model and timed."""
    manager = state.manager()
    job = manager.export_model(manager.get_model(model).id, spec_values(SPECS["export"], options, spec))
    if state.detach:
        finish(manager, job)
        return
    output.follow(manager, job, quiet=state.json)
    made = manager.export(job.id)
    if out is not None:
        manager.save_export(job.id, out)
    output.emit(made.to_json()) if state.json else output.show_export(made)


def prune_in_rounds(
    model: str = "current",
    spec: Path | None = None,
    retrain_spec: Annotated[Path | None, typer.Option(help="Spec file of the retraining of all rounds together.")] = None,
    **options: Any,
) -> None:
    """Prune in rounds of prune and retrain, each a model; then evaluate and benchmark. --retrain-... are those of all rounds."""
    manager = state.manager()
    row = manager.get_model(model)
    how = {name: value for name in ScheduleSpec.model_fields if (value := options.pop(name)) is not None}
    training = {name: options.pop(f"retrain_{name}") for name in RetrainSpec.model_fields}
    pruning = spec_values(SPECS["prune"], options, spec)
    chain = manager.prune_in_rounds(row.id, pruning, spec_values(RetrainSpec, training, retrain_spec), **how)
    if state.detach:
        output.emit([job.to_json() for job in chain]) if state.json else output.console.print(f"{len(chain)} jobs queued")
        return
    done = [output.follow(manager, job, quiet=state.json) for job in chain]
    comparison = manager.compare([row.id, *(job.model_id for job in done if job.model_id)])
    output.emit(comparison.to_json()) if state.json else output.show_comparison(comparison)


_VERBS: tuple[tuple[str, Callable[..., None], tuple[str, ...], dict[str, type[Spec]]], ...] = (
    ("import", import_model, ("source",), {}),
    ("prune", prune, (), {}),
    ("prune-in-rounds", prune_in_rounds, (), {"": ScheduleSpec, "retrain_": RetrainSpec}),
    ("retrain", retrain, (), {}),
    ("evaluate", evaluate, (), {}),
    ("benchmark", benchmark, ("models",), {}),
    ("sensitivity", sensitivity, (), {}),
    ("profile", profile, (), {}),
    ("export", export, (), {}),
)
for _verb, _function, _skip, _also in _VERBS:
    _first = {"import": "source", "benchmark": "models"}.get(_verb, "model")
    _made = with_options(_function, SPECS[_verb.removesuffix("-in-rounds")], _skip, also=_also)
    _given = _made.__signature__.parameters[_first]  # type: ignore[attr-defined]
    _argument = typer.Argument(help="Ids, names or aliases." if _first != "source" else "What to import.")
    _replaced = _given.replace(annotation=Annotated[_given.annotation, _argument])
    _made.__signature__ = _made.__signature__.replace(  # type: ignore[attr-defined]
        parameters=[_replaced if p.name == _first else p for p in _made.__signature__.parameters.values()]  # type: ignore[attr-defined]
    )
    _made.__annotations__[_first] = _replaced.annotation
    app.command(_verb)(_made)


training.register(app)
inspection.register(app)
running.register(app)
inside.register(app)


@app.command()
def solve(
    model: Annotated[str, typer.Argument(help="Id, name or alias.")] = "current",
    cost: Annotated[str, typer.Option(help=f"What counts: {', '.join(COSTS)}.")] = "decode_ms",
    at_most: Annotated[float | None, typer.Option(help="The most that it may be, in its unit (ms, numbers, bytes).")] = None,
    loss_db: Annotated[float | None, typer.Option(help="Instead: the most that may be lost in one shot, in dB.")] = None,
    lock: Annotated[list[str] | None, typer.Option(help="A site, stage or kind that stays whole; may be given again.")] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Prune so at once; then (not with --detach) measure both and say what was achieved.")
    ] = False,
) -> None:
    """Find the pruning that reaches a target at the least predicted loss, and say what it will bring."""
    if cost not in COSTS:
        raise CoreError(f"There is no cost {cost!r}.", code="cost", given=cost, legal=COSTS)
    manager = state.manager()
    row = manager.get_model(model)
    proposal = manager.propose(row.id, cost=cost, at_most=at_most, loss_db=loss_db, locked=lock or ())  # type: ignore[arg-type]
    if not run:
        output.emit(proposal.to_json()) if state.json else output.show_proposal(proposal)
        return
    if not state.json:
        output.show_proposal(proposal)
    if state.detach:
        finish(manager, manager.prune_model(row.id, proposal.spec))
        return
    chain = [output.follow(manager, job, quiet=state.json) for job in manager.prune_as_proposed(row.id, proposal)]
    outcome = next(found for found in manager.outcomes(row.id, limit=1000) if found.model.id == chain[0].model_id)
    if state.json:
        output.emit({"model": outcome.model.to_json(), "predicted": outcome.predicted, "achieved": outcome.achieved})
        return
    output.show_outcome(outcome)


compare_verbs.add_to(app)


@app.command()
def lineage(
    search: Annotated[str, typer.Option(help="Words, or tests such as 'psnr_db > 30 and decode_ms < 5', 'tag = small'.")] = "",
) -> None:
    """The tree of models, or those of it that a search fits."""
    manager = state.manager()
    fits = {leaf.id for leaf in manager.forest().find(search)}
    lines = [(depth, model) for depth, model in output.lineage_lines(manager) if model.id in fits]
    if state.json:
        output.emit([{"depth": depth, **model.to_json()} for depth, model in lines])
        return
    for depth, model in lines:
        marks = "".join(f" [{alias}]" for alias in model.aliases)
        text = f"{'   ' * depth}{'└─ ' if depth else ''}{model.name}  {model.id}{marks}"
        output.console.print(text, markup=False, highlight=False)


@app.command()
def jobs(
    job: Annotated[str | None, typer.Argument(help="One job, with its log.")] = None,
    pause: bool = False,
    resume: bool = False,
    cancel: bool = False,
    checkpoint: bool = False,
    run_more: Annotated[int | None, typer.Option(help="Let a retraining run so many more steps, then pause.")] = None,
) -> None:
    """List jobs; show one with its log; pause, resume, cancel it, make it write a checkpoint, or run some more steps."""
    manager = state.manager()
    if job is None:
        rows = manager.jobs()
        output.emit([row.to_json() for row in rows]) if state.json else output.console.print(output.jobs_table(rows))
        return
    asked = {"pause": pause, "resume": resume, "cancel": cancel, "checkpoint": checkpoint}
    for verb in (verb for verb, wanted in asked.items() if wanted):
        manager.control(job, verb)
    if run_more is not None:
        manager.run_more(job, run_more)
    row = manager.job(job)
    if state.json:
        trained = row.operation == "retrain"
        hints = [hint.__dict__ for hint in manager.hints(job)] if trained else []
        layers = manager.layer_figures(job) if trained else []
        more = {"hints": hints, "layers": layers, "machine": manager.machine_used(job), "log": manager.log(job)}
        output.emit({**row.to_json(), **more})
        return
    output.console.print(output.jobs_table([row]))
    if used := manager.machine_used(job):
        output.console.print(f"Of the machine: {used}.", markup=False, highlight=False)
    for hint in manager.hints(job) if row.operation == "retrain" else ():
        output.console.print(f"{hint.flag}: {hint.text}", style="yellow", markup=False, highlight=False)
    for line in manager.log(job):
        output.console.print(f"{line['time']} {line['level']}: {line['message']}", markup=False, highlight=False)


@app.command()
def verify(model: Annotated[str | None, typer.Argument(help="One model; default: all.")] = None) -> None:
    """Re-derive ids and digests from what is stored."""
    found = state.manager().verify(model)
    if state.json:
        output.emit([problem.__dict__ for problem in found])
    else:
        for problem in found:
            output.console.print(str(problem), style="red", markup=False)
        output.console.print(f"{len(found)} problems." if found else "Everything is as it was stored.")
    if found:
        raise typer.Exit(1)


@app.command()
def worker() -> None:
    """Serve one device's jobs in the foreground (pages and verbs start a worker by themselves)."""
    from core.devices import default_device

    serve(state.settings, default_device(state.settings.device))


@app.command()
def setup() -> None:
    """Write the sample images and import the demo model, where they are not there yet."""
    manager = state.manager()
    if manager.current() is None and not state.json:
        output.console.print("Drawing the sample images and importing the demo model: about a minute, once.")
    demo_job.prepare(manager)
    output.emit({"home": str(manager.store.root)}) if state.json else output.console.print("Ready.")


@app.command()
def demo(
    rate: Annotated[float, typer.Option(min=0.1, max=0.9, help="Share of units to remove.")] = 0.5,
    quick: Annotated[bool, typer.Option(help="A tiny model and a few steps: does everything work?")] = False,
) -> None:
    """The main job without a browser: import, prune, retrain, evaluate, benchmark, compare."""
    manager = state.manager()
    comparison = demo_job.run(manager, rate, quick=quick, follow=lambda job: output.follow(manager, job, quiet=state.json))
    output.emit(comparison.to_json()) if state.json else output.show_comparison(comparison)


@app.command("demo-model")
def demo_model() -> None:
    """Train the shipped demo model anew from its recipe (some hours on two cores)."""
    manager = state.manager()
    row = demo_job.train_demo(manager, follow=lambda job: output.follow(manager, job, quiet=state.json))
    output.emit(row.to_json()) if state.json else output.console.print(f"{row.id} {row.name}", markup=False)


lineage_verbs.add_to(app)
card_verb.add_to(app)
app.add_typer(mirror_verbs.app, name="mirror")


def main(arguments: list[str] | None = None) -> None:
    """The entry: errors become one line and an exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        # Outside its standalone mode click returns the code of a `typer.Exit` instead of ending with it.
        if code := app(args=common_first(given), standalone_mode=False):
            sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:  # the terminal's boundary
        if hasattr(error, "format_message"):
            error = CoreError(error.format_message(), code="usage", next="Add --help to see what is legal.")
        fields = as_error(error)
        if fields is None:
            fields = {"code": "bug", "message": f"{type(error).__name__}: {error}", "given": None, "legal": None,
                      "next": "This is a bug of Offshoot: please report it."}  # fmt: skip
        output.emit_error(fields) if "--json" in given else output.show_error(fields)
        sys.exit(3 if fields["code"] == "bug" else 1 if fields["code"] in JOB_FAILED else 2)
