"""Asks W&B what it holds of a run, through wandb's public API: after a run was sent, and to verify one later."""

from __future__ import annotations

import time
from typing import Any

import wandb
from wandb.apis.public import Run as PublicRun

from core.errors import CoreError
from core.mirror.modes import GONE
from core.mirror.refusals import PARTIAL, first_line, refusal
from core.mirror.runs import RunRecord
from core.mirror.wandb_file import WandbArtifact, WandbRun
from core.mirror.writing import last_step

API_LIMIT_S = 30
_NOT_OURS = ("_wandb",)


def confirm(remote: str, record: RunRecord, *, has_row: bool, limit_s: float = 20.0) -> None:
    """Raises CoreError(mirror_partial) unless W&B has a run's last row and each of its artifacts, within `limit_s`.

    wandb ends a run without an error when it gives its uploads up, and W&B takes a moment to show what it was sent.
    """
    until = time.monotonic() + limit_s
    while problems := _missing(_find(remote), record, has_row):
        if time.monotonic() >= until:
            raise CoreError(
                f"W&B took {record.name} only in part: {' and '.join(problems)}.",
                code=PARTIAL,
                given=record.id,
                next="Nothing is lost: the run waits in the store and is completed at the next sync.",
            )
        time.sleep(1.0)


def _missing(run: PublicRun, record: RunRecord, has_row: bool) -> list[str]:
    wanted = last_step(record) + (1 if has_row else 0)
    has = -1 if run.lastHistoryStep is None else int(run.lastHistoryStep)
    artifacts = {artifact.name for artifact in _artifacts(run)}
    needed = {one.name for one in (*record.uses, *([record.makes] if record.makes else []))}
    problems = [f"its curves up to step {has} of {wanted}"] if (record.points or has_row) and has < wanted else []
    return problems + ([f"{len(needed & artifacts)} of {len(needed)} artifacts"] if needed - artifacts else [])


def read_remote(remote: str) -> WandbRun | None:
    """What W&B holds of `entity/project/run`; None where it has no such run. Raises CoreError where W&B cannot be asked."""
    try:
        run = _find(remote)
    except CoreError as error:
        if error.code == GONE:
            return None
        raise
    return WandbRun(
        id=run.id,
        name=run.name or "",
        group=run.group or "",
        project=run.project,
        job_type=run.jobType or "",
        tags=list(run.tags or []),
        config=dict(run.config),
        history=[dict(row) for row in run.scan_history(use_cache=False)],
        summary={key: value for key, value in dict(run.summary).items() if key not in _NOT_OURS},
        artifacts=_artifacts(run),
        exit_code=0 if run.state == "finished" else 1,
    )


def _find(path: str) -> PublicRun:
    try:
        return wandb.Api(timeout=API_LIMIT_S).run(path)
    except Exception as error:  # wandb raises its own, requests' and ValueError; each is said in one line
        if "could not find" in str(error).lower():
            raise CoreError(
                "The run is not at W&B any more.",
                code=GONE,
                given=path,
                next="It was deleted there; the record here is whole.",
            ) from error
        known = refusal(error, path, at_start=True)
        assert known is not None, first_line(error)
        raise known from error


def _artifacts(run: PublicRun) -> list[WandbArtifact]:
    """Those made and those used, without what W&B itself makes of tables and the like."""
    return [
        _artifact(artifact, uses=uses)
        for uses, found in ((False, run.logged_artifacts()), (True, run.used_artifacts()))
        for artifact in found
        if artifact.type == "model"
    ]


def _artifact(artifact: Any, *, uses: bool) -> WandbArtifact:
    return WandbArtifact(
        name=artifact.name.rpartition(":")[0],
        type=artifact.type,
        digest=artifact.digest,
        metadata=dict(artifact.metadata),
        aliases=list(artifact.aliases),
        uses=uses,
        files={},
    )
