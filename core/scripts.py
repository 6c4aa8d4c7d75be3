"""The chain that made a model as a short script: a Python file, or sh with the terminal's verbs. No torch.

A script uses the public verbs only. Run on an empty store it makes the same chain, and with the same device, thread count and
images its last model has the same id; where it has not, the script says so and ends with 1. A model that was made of a checkpoint
is two steps: its training up to that step, and the branch.
"""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import store as st
import store.jobs as jobs
from core.specs import SPECS, Spec
from store import JobRow, ModelRow, Store


def job_of(store: Store, row: ModelRow) -> JobRow | None:
    """The job that made a model; None where the model came without it."""
    return _job(store, row.job_id)


def _job(store: Store, ref: Any) -> JobRow | None:
    if not ref or not store.rows("SELECT 1 FROM job WHERE id=?", (ref,)):
        return None
    return jobs.get_job(store, ref)


class _Step:
    """One model of a chain as a script needs it: its operation, the settings that are no defaults, what it is called.

    Of a model made of a checkpoint these are the training's, `stop` is the step, and `at` what `branch` is asked for.
    """

    def __init__(self, store: Store, row: ModelRow, number: int) -> None:
        self.row, self.number, self.variable = row, number, f"model_{number}"
        job = job_of(store, row)
        self.threads = None if job is None else job.result.get("threads")
        self.device = None if job is None else job.device
        values: Mapping[str, Any] = job.spec if job is not None else row.spec
        self.operation = str(row.spec["operation"])
        self.stop: int | None = None
        self.at = ""
        if self.operation == "branch":
            self.operation, self.stop = "retrain", int(values["step"])
            self.at = "best" if values["weights"] == "best" else str(self.stop)
            training = _job(store, values.get("job"))
            values = training.spec if training is not None else values["training"]
            self.threads = self.threads or (training.result.get("threads") if training is not None else None)
        # A null stays where the default is something else: a threshold needs `rate: null`.
        self.values = _changed(SPECS[self.operation], values)
        self.source = self.values.pop("source", "demo") if self.operation == "import" else None
        teacher = values.get("teacher") or ""
        recorded = next((parent for role, parent in row.parents if role == "teacher"), None)
        known = st.get_model(store, recorded, deleted=True) if recorded else None
        by_id = known is not None and teacher.removeprefix("m_") in known.id
        self.teacher_alias = None if known is None or by_id or teacher in ("baseline", known.name) else (teacher, known.id)


def _changed(kind: type[Spec], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a spec that are no defaults."""
    fields = kind.model_fields
    return {name: value for name, value in values.items() if name in fields and value != _default(fields[name])}


def _default(field: Any) -> Any:
    default = field.default
    return default.model_dump(mode="json") if hasattr(default, "model_dump") else json.loads(json.dumps(default))


def _steps(store: Store, chain: Sequence[ModelRow]) -> tuple[list[_Step], str, int]:
    """The steps, with device and thread count on record; 0 threads (all cores) where none is."""
    steps = [_Step(store, row, number) for number, row in enumerate(chain)]
    devices = [step.device for step in steps if step.device]
    threads = [int(step.threads) for step in steps if step.threads]
    return steps, (devices[-1] if devices else "cpu"), (threads[-1] if threads else 0)


def _conditions(device: str, threads: int) -> str:
    count = f"{threads or 'all'} thread{'' if threads == 1 else 's'}"
    return f"# The id is the same on the same images, with device {device} and {count} as on record."


def python_script(store: Store, chain: Sequence[ModelRow]) -> str:
    """The chain in Python; a chain is told parents first."""
    steps, device, threads = _steps(store, chain)
    row = chain[-1]
    variables = {step.row.id: step.variable for step in steps}
    lines = [
        f"# Makes {row.name} ({row.id}) from its baseline: python FILE [STORE], with Offshoot's folder in PYTHONPATH.",
        _conditions(device, threads),
        "",
        "import sys",
        "",
        "import store",
        "from core.model_manager import ModelManager",
        "from core.settings import read_settings",
        "",
        "home = sys.argv[1] if len(sys.argv) > 1 else 'remade'",
        f"manager = ModelManager(settings=read_settings(home=home, device={device!r}, num_threads={threads}))",
        "",
    ]
    for step in steps:
        if step.teacher_alias is not None:
            word, teacher = step.teacher_alias
            lines.append(f"store.set_alias(manager.store, {word!r}, {variables[teacher]}.id)")
        lines += _python_step(step, variables)
        lines.append(f"sys.stdout.write(f'{{{step.variable}.id}} (on record: {step.row.id})\\n')")
    lines += ["", f"sys.exit(0 if {variables[row.id]}.id == {row.id!r} else 1)", ""]
    return "\n".join(lines)


def _python_step(step: _Step, variables: Mapping[str, str]) -> list[str]:
    name = step.row.name
    if step.operation == "import":
        options = "".join(f", {key}={value!r}" for key, value in step.values.items())
        return [f"{step.variable} = manager.initialize_model({step.source!r}, name={name!r}{options})"]
    assert step.row.parent_id is not None
    values = {key: value for key, value in step.values.items() if key != "plan"}
    spec = pprint.pformat(values, width=110, sort_dicts=True).replace("\n", "\n    ")
    if "plan" in step.values:
        spec = f"{{**{spec}, 'plan': {variables[step.values['plan']]}.id}}"
    given = [f"    {variables[step.row.parent_id]}.id,", f"    {spec},"]
    made = f"{step.variable} = manager.get_model(manager.wait(job.id).model_id)"
    if step.stop is None:
        return [f"job = manager.{step.operation}_model(", *given, f"    name={name!r},", ")", made]
    return [
        "training = manager.retrain_to(", *given, f"    {step.stop},", f"    name={f'training of {name}'!r},", ")",
        "manager.end_at_pause(training.id)", f"job = manager.branch(training.id, {step.at!r}, name={name!r})", made,
    ]  # fmt: skip


def terminal_script(store: Store, chain: Sequence[ModelRow]) -> str:
    """The chain in sh; a chain is told parents first."""
    steps, device, threads = _steps(store, chain)
    row = chain[-1]
    lines = [
        "#!/bin/sh",
        f"# Makes {row.name} ({row.id}) from its baseline: sh FILE [STORE], in the folder of Offshoot.",
        _conditions(device, threads),
        "set -eu",
        'store="${1:-remade}"',
        f"export OFFSHOOT_DEVICE={shlex.quote(device)} OFFSHOOT_NUM_THREADS={threads}",
        'python="${PYTHON:-.venv/bin/python}"',
        '[ -x "$python" ] || command -v "$python" > /dev/null || python=python3',
        'specs="$(mktemp -d)"',
        "trap 'rm -rf \"$specs\"' EXIT",
        'offshoot() { "$python" -m core --store "$store" "$@"; }',
    ]
    if any(step.stop is not None for step in steps):
        lines.append("""job_id() { "$python" -c 'import json, sys; print(json.load(sys.stdin)["data"]["job"]["id"])'; }""")
    lines.append("")
    for step in steps:
        if step.teacher_alias is not None:
            word, teacher = step.teacher_alias
            lines.append(f"offshoot annotate {teacher} --alias {shlex.quote(word)}")
        path, name = f'"$specs/{step.number}.json"', shlex.quote(step.row.name)
        lines += [f"cat > {path} <<'END'", json.dumps(step.values, indent=1, sort_keys=True), "END"]
        of = shlex.quote(str(step.source)) if step.operation == "import" else step.row.parent_id
        if step.stop is None:
            lines.append(f"offshoot {step.operation} {of} --spec {path} --name {name}")
            continue
        training = shlex.quote(f"training of {step.row.name}")
        lines += [
            f'offshoot --json retrain {of} --spec {path} --name {training} --to-step {step.stop} > "$specs/training.json"',
            f'offshoot branch "$(job_id < "$specs/training.json")" --at {step.at} --name {name}',
        ]
    lines += ["", f"# Fails where the last model has another id than on record.\noffshoot verify {row.id}", ""]
    return "\n".join(lines)
