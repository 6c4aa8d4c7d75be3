"""Making a model again: the job that reruns its chain and compares, and the chain as a short script. No torch.

A script uses the public verbs only. Run on an empty store it makes the same chain, and with the same device, thread count and
images its last model has the same id; where it has not, the script says so and ends with 1.
"""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import store as st
import store.jobs as jobs
from core.devices import devices
from core.errors import CoreError
from core.specs import SPECS, ReproduceSpec
from store import JobRow, ModelRow, Store

SCRIPT_KINDS = ("python", "terminal")


def chain_of(store: Store, ref: str) -> list[ModelRow]:
    """All that a model goes back to and the model itself, parents and teachers before their children; tombstones included."""
    row = st.get_model(store, ref, deleted=True)
    known = {found.id: found for found in (row, *st.ancestors(store, row.id))}
    order: dict[str, ModelRow] = {}
    stack = [(row.id, False)]
    while stack:
        model_id, seen = stack.pop()
        if model_id in order:
            continue
        if seen:
            order[model_id] = known[model_id]
            continue
        stack.append((model_id, True))
        # The parent is walked last, so it comes off the stack first: the chain reads in the order in which it grew.
        stack += [(parent, False) for _, parent in sorted(known[model_id].parents, reverse=True)]
    return list(order.values())


class Reproduction:
    """The part of `ModelManager` that makes models again."""

    store: Store
    _submit: Callable[..., JobRow]

    def reproduce_model(self, ref: str, *, device: str | None = None) -> JobRow:
        """Submits a rerun of the chain that made a model, by default on the device of the record; `reproduction` has the outcome."""
        row = st.get_model(self.store, ref)
        _check_chain(chain_of(self.store, row.id))
        made_by = _job_of(self.store, row)
        if device is None and made_by is not None:
            device = made_by.device if made_by.device in [found.name for found in devices()] else None
        return self._submit(ReproduceSpec(), row.id, device=device, name=f"reproduce {row.name}")

    def reproduction_job(self, ref: str) -> JobRow | None:
        """The newest rerun of a model that was not cancelled, ended or not."""
        model_id = st.get_model(self.store, ref).id
        states = [state for state in jobs.STATES if state != "cancelled"]
        return next(iter(jobs.list_jobs(self.store, states, 1, operations=("reproduce",), parent=model_id)), None)

    def script(self, ref: str, kind: str = "python") -> str:
        """The chain that made a model as a script: `python`, or `terminal` (sh). Raises CoreError(script_kind)."""
        if kind not in SCRIPT_KINDS:
            raise CoreError(f"There is no script of kind {kind!r}.", code="script_kind", given=kind, legal=SCRIPT_KINDS)
        row = st.get_model(self.store, ref)
        chain = chain_of(self.store, row.id)
        _check_chain(chain)
        _check_whole_trainings(chain)
        steps = [_Step(self.store, step, number) for number, step in enumerate(chain)]
        return (_python if kind == "python" else _terminal)(row, steps)


def reproduction_lines(result: Mapping[str, Any]) -> list[str]:
    """What a rerun found, a line a step, then the figures where the last step differs."""
    lines = []
    for step in result["steps"]:
        if step["operation"] == "record":
            lines.append(f"{step['name']}: taken from the record")
            continue
        where = f"{step['device']}, {step['threads']} thread{'s' if step['threads'] != 1 else ''}"
        if step["identical"]:
            text = "bit-identical"
        elif step["relative_difference"] is None:
            text = step["reason"]
        else:
            text = (
                f"differs by {step['relative_difference']:.2g} of the weights' norm "
                f"(largest difference of a weight {step['max_abs_difference']:.2g})"
            )
        before = (step["recorded_device"], step["recorded_threads"])
        moved = before[0] is not None and (before[0] != step["device"] or before[1] not in (None, step["threads"]))
        lines.append(f"{step['name']}: {text} ({where}{f'; the record: {before[0]}, {before[1]} threads' if moved else ''})")
        lines += [f"  {note}" for note in step["notes"]]
    for key, pair in result["figures"].items():
        if pair["record"] is not None and pair["again"] is not None:
            lines.append(f"{key}: {pair['record']:.6g} on record, {pair['again']:.6g} again")
    return lines


def _job_of(store: Store, row: ModelRow) -> JobRow | None:
    if row.job_id is None or not store.rows("SELECT 1 FROM job WHERE id=?", (row.job_id,)):
        return None
    return jobs.get_job(store, row.job_id)


def _check_chain(chain: list[ModelRow]) -> None:
    for row in chain:
        operation = row.spec.get("operation")
        if operation not in SPECS:
            raise CoreError(
                f"{row.name} ({row.id}) has no recorded operation that can be run again.",
                code="unknown_operation",
                given=operation,
                legal=sorted(SPECS),
            )


def _check_whole_trainings(chain: list[ModelRow]) -> None:
    for row in chain:
        if row.spec.get("operation") == "branch":
            raise CoreError(
                f"{row.name} was made of a checkpoint at step {row.spec.get('step')}: a script runs whole trainings only.",
                code="checkpoint",
                given=row.id,
                next="Reproduce it, which runs its training again up to that step; or script the model that its training ended with.",
            )


class _Step:
    """One model of a chain as a script needs it: its operation, the settings that are no defaults, what it is called."""

    def __init__(self, store: Store, row: ModelRow, number: int) -> None:
        self.row, self.number = row, number
        job = _job_of(store, row)
        self.threads = None if job is None else job.result.get("threads")
        self.device = None if job is None else job.device
        values = dict(job.spec if job is not None else row.spec)
        values.pop("operation", None)
        self.operation = str(row.spec["operation"])
        kind = SPECS[self.operation]
        fields = kind.model_fields
        # A null stays where the default is something else: a threshold needs `rate: null`.
        self.values = {name: value for name, value in values.items() if name in fields and value != _default(fields[name])}
        self.source = self.values.pop("source", "demo") if self.operation == "import" else None
        teacher = values.get("teacher") or ""
        recorded = next((parent for role, parent in row.parents if role == "teacher"), None)
        known = st.get_model(store, recorded, deleted=True) if recorded else None
        by_id = known is not None and teacher.removeprefix("m_") in known.id
        self.teacher_alias = None if known is None or by_id or teacher in ("baseline", known.name) else (teacher, known.id)


def _default(field: Any) -> Any:
    default = field.default
    return default.model_dump(mode="json") if hasattr(default, "model_dump") else json.loads(json.dumps(default))


def _running(steps: list[_Step]) -> tuple[str, int]:
    """Device and thread count on record; 0 threads (all cores) where none is."""
    devices = [step.device for step in steps if step.device]
    threads = [int(step.threads) for step in steps if step.threads]
    return (devices[-1] if devices else "cpu"), (threads[-1] if threads else 0)


def _python(row: ModelRow, steps: list[_Step]) -> str:
    device, threads = _running(steps)
    variables = {step.row.id: f"model_{step.number}" for step in steps}
    lines = [
        f"# Makes {row.name} ({row.id}) from its baseline: python FILE [STORE], with Offshoot's folder in PYTHONPATH.",
        f"# The id is the same on the same images, with device {device} and {threads or 'all'} threads as on record.",
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
        name, variable = step.row.name, variables[step.row.id]
        if step.teacher_alias is not None:
            word, teacher = step.teacher_alias
            lines.append(f"store.set_alias(manager.store, {word!r}, {variables[teacher]}.id)")
        if step.operation == "import":
            options = "".join(f", {key}={value!r}" for key, value in step.values.items())
            lines.append(f"{variable} = manager.initialize_model({step.source!r}, name={name!r}{options})")
        else:
            assert step.row.parent_id is not None
            spec = pprint.pformat(step.values, width=110, sort_dicts=True).replace("\n", "\n    ")
            lines += [
                f"job = manager.{step.operation}_model(",
                f"    {variables[step.row.parent_id]}.id,",
                f"    {spec},",
                f"    name={name!r},",
                ")",
                f"{variable} = manager.get_model(manager.wait(job.id).model_id)",
            ]
        lines.append(f"sys.stdout.write(f'{{{variable}.id}} (on record: {step.row.id})\\n')")
    last = variables[row.id]
    lines += ["", f"sys.exit(0 if {last}.id == {row.id!r} else 1)", ""]
    return "\n".join(lines)


def _terminal(row: ModelRow, steps: list[_Step]) -> str:
    device, threads = _running(steps)
    lines = [
        "#!/bin/sh",
        f"# Makes {row.name} ({row.id}) from its baseline: sh FILE [STORE], in the folder of Offshoot.",
        f"# The id is the same on the same images, with device {device} and {threads or 'all'} threads as on record.",
        "set -eu",
        'store="${1:-remade}"',
        f"export OFFSHOOT_DEVICE={shlex.quote(device)} OFFSHOOT_NUM_THREADS={threads}",
        'python="${PYTHON:-python}"',
        'specs="$(mktemp -d)"',
        "trap 'rm -rf \"$specs\"' EXIT",
        'offshoot() { "$python" -m core --store "$store" "$@"; }',
        "",
    ]
    for step in steps:
        if step.teacher_alias is not None:
            word, teacher = step.teacher_alias
            lines.append(f"offshoot annotate {teacher} --alias {shlex.quote(word)}")
        path = f'"$specs/{step.number}.json"'
        lines += [f"cat > {path} <<'END'", json.dumps(step.values, indent=1, sort_keys=True), "END"]
        of = shlex.quote(str(step.source)) if step.operation == "import" else step.row.parent_id
        lines.append(f"offshoot {step.operation} {of} --spec {path} --name {shlex.quote(step.row.name)}")
    lines += ["", f"# Fails where the last model has another id than on record.\noffshoot verify {row.id}", ""]
    return "\n".join(lines)
