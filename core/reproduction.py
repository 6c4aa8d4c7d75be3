"""Making a model again: the job that reruns its chain and compares, and the chain as a short script (`core.scripts`). No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import store as st
import store.jobs as jobs
from core.devices import devices
from core.errors import CoreError
from core.scripts import job_of, python_script, terminal_script
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
        made_by = job_of(self.store, row)
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
        return (python_script if kind == "python" else terminal_script)(self.store, chain)


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
