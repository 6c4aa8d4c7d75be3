"""What W&B holds of the runs that were sent against what the store has of their jobs, point for point; free of wandb."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import CoreError
from core.mirror.modes import check_folder, resolve_target
from core.mirror.process import SenderProcess
from core.mirror.replay import RUN_LIMIT_S, finished
from core.mirror.runs import ArtifactRecord, RunRecord
from core.mirror.wandb_file import WandbRun
from store import Store, mirrored

MAX_LINES = 5
"""Differences of one kind that are listed; the rest is counted."""
_UNITED = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True)
class VerifyReport:
    """Runs that were looked at, finished jobs that were never sent, and one line a difference."""

    target: str
    num_runs: int
    num_waiting: int
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify_target(
    store: Store,
    mode: str,
    folder: Path | str | None = None,
    *,
    project: str = "offshoot",
    run_limit_s: float = RUN_LIMIT_S,
) -> VerifyReport:
    """Reads back every run that was sent (from the offline files, or from W&B) and compares it with the store.

    Raises CoreError(mirror_mode, no_key, mirror_folder, mirror_nowhere), and the first error of a W&B that cannot be asked.
    """
    target = resolve_target(store, mode, folder, project)
    if target.problem is not None:
        raise target.problem
    if target.sends is None:
        raise CoreError(
            f"There is nothing to verify: {target.why}",
            code="mirror_nowhere",
            given=mode,
            legal=["offline", "online"],
            next="Add `--mode offline` to look at offline runs.",
        )
    rows, done = mirrored(store, target.name), finished(store)
    sent = [job for job in done if job in rows and rows[job].progress.get("state") == "sent"]
    gone = [job for job in done if job in rows and rows[job].progress.get("state") == "gone"]
    problems = [f"{job}: the run was deleted at W&B." for job in gone]
    if sent:
        check_folder(target.folder)
        with SenderProcess(store, target, run_limit_s) as sender:
            for job in sent:
                answer = sender.ask({"job": job, "verify": rows[job].remote})
                if not answer["ok"]:
                    if answer["error"]["code"] != "wandb_file":
                        raise CoreError(**answer["error"])
                    problems.append(f"{job}: {answer['error']['message']}")
                    continue
                problems += answer["sent"]["problems"]
    return VerifyReport(target.name, len(sent), len(done) - len(sent) - len(gone), problems)


def compare_run(record: RunRecord, held: WandbRun | None) -> list[str]:
    """One line a difference; empty where the run says what the store says."""
    if held is None:
        return [f"{record.name} ({record.id}): the run is missing."]
    problems = [
        f"{name} is {theirs!r}, not {ours!r}"
        for name, ours, theirs in (
            ("the name", record.name, held.name),
            ("the group", record.group, held.group),
            ("the job's type", record.job_type, held.job_type),
            ("the job's id", record.config["job_id"], held.config.get("job_id")),
            ("the parents' ids", record.config["parent_ids"], held.config.get("parent_ids")),
            ("the specification", _plain(record.config["spec"]), _plain(held.config.get("spec"))),
        )
        if ours != theirs
    ]
    if held.exit_code != 0:
        problems.append("the run has no regular end")
    problems += _curves(record, held) + _figures(record, held) + _edges(record, held)
    return [f"{record.name} ({record.id}): {problem}." for problem in problems]


def _curves(record: RunRecord, held: WandbRun) -> list[str]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in held.history:
        rows.setdefault(int(row["_step"]), []).append(row)
    problems = [f"step {step} is there {len(found)} times" for step, found in rows.items() if len(found) > 1]
    for point in record.points:
        found = rows.pop(point.step, [{}])[0]
        problems += [
            f"{name} at step {point.step} is {found.get(name)!r}, not {value!r}"
            for name, value in point.values.items()
            if not _same(value, found.get(name))
        ]
    last = record.points[-1].step if record.points else 0
    problems += [f"there is a row at step {step} that the store does not have" for step in rows if step != last + 1]
    return _shortened(problems)


def _figures(record: RunRecord, held: WandbRun) -> list[str]:
    return _shortened(
        [
            f"the figure {name} is {held.summary.get(name)!r}, not {value!r}"
            for name, value in record.summary.items()
            if not _same(value, held.summary.get(name))
        ]
    )


def _edges(record: RunRecord, held: WandbRun) -> list[str]:
    problems = []
    for uses, wanted in ((True, record.uses), (False, [record.makes] if record.makes is not None else [])):
        # W&B keeps tables as artifacts of another type.
        found = [artifact for artifact in held.artifacts if artifact.uses == uses and artifact.type == "model"]
        what = "parent" if uses else "model"
        for one in wanted:
            there = [artifact for artifact in found if artifact.name == one.name]
            if len(there) != 1:
                problems.append(f"the {what} {one.name} is there {len(there)} times")
            elif problem := _metadata_problem(one, there[0].metadata):
                problems.append(problem)
        # A model that was deleted here since then is still known by its id.
        known = {*record.config["parent_ids"], record.config["made_model_id"]}
        extra = {one.name for one in found if one.metadata.get("id") not in known}
        problems += [f"there is a {what} {name} that the store does not have" for name in sorted(extra)]
    return problems


def _metadata_problem(record: ArtifactRecord, metadata: dict[str, Any]) -> str | None:
    for name in ("id", "parent_ids", "weights_digest"):
        if _plain(record.metadata[name]) != _plain(metadata.get(name)):
            return f"{record.name} has {name} {metadata.get(name)!r}, not {record.metadata[name]!r}"
    return None


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bool) or not isinstance(ours, int | float):
        return bool(_plain(ours) == _plain(theirs))
    if isinstance(theirs, str) and theirs in _UNITED:
        theirs = float(theirs)
    if isinstance(theirs, bool) or not isinstance(theirs, int | float):
        return False
    return (math.isnan(ours) and math.isnan(theirs)) or float(ours) == float(theirs)


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists, keys are strings; without empty dicts, which W&B does not keep."""
    return _without_empty(json.loads(json.dumps(value, default=str)))


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(one) for key, one in value.items() if one != {}}
    return value


def _shortened(problems: list[str]) -> list[str]:
    left = len(problems) - MAX_LINES
    return problems if left <= 0 else [*problems[:MAX_LINES], f"and {left} more differences of this kind"]
