"""What of ours was sent where: the mirror's memory, so that it can catch up after being off or broken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store.db import Store, execute
from store.identity import now


@dataclass(frozen=True)
class MirroredRow:
    """`subject` (a model's or job's id) was sent to `target` (wandb) as `remote`, as far as `progress` says."""

    target: str
    subject: str
    remote: str
    progress: dict[str, Any]
    updated: str


def set_mirrored(store: Store, target: str, subject: str, remote: str, progress: Mapping[str, Any]) -> None:
    """Record how far a subject was sent, replacing what was recorded."""
    with store.write() as session:
        execute(
            session,
            "INSERT INTO mirror (target, subject, remote, progress, updated) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (target, subject) DO UPDATE SET remote=excluded.remote, progress=excluded.progress,"
            " updated=excluded.updated",
            (target, subject, remote, json.dumps(dict(progress), sort_keys=True), now()),
        )


def mirrored(store: Store, target: str) -> dict[str, MirroredRow]:
    """All that was sent to a target, by subject."""
    return {
        subject: MirroredRow(target, subject, remote, json.loads(progress), updated)
        for subject, remote, progress, updated in store.rows(
            "SELECT subject, remote, progress, updated FROM mirror WHERE target=? ORDER BY updated", (target,)
        )
    }


@dataclass(frozen=True)
class MirrorCounts:
    """Finished jobs, and how many of them are settled at a target; `errors` are what others met, the latest first."""

    num_done: int
    num_settled: int
    errors: tuple[dict[str, Any], ...]

    @property
    def num_waiting(self) -> int:
        return self.num_done - self.num_settled


SETTLED = ("sent", "gone")
"""States after which nothing is sent any more: W&B has the run, or its user has deleted it there."""


def mirror_counts(store: Store, target: str, *, num_errors: int = 1) -> MirrorCounts:
    """How far a target is behind: two counts and a short list, whatever the number of jobs."""
    state = "json_extract(m.progress, '$.state')"
    ((done,),) = store.rows("SELECT count(*) FROM job WHERE state='done'")
    ((settled,),) = store.rows(
        f"SELECT count(*) FROM mirror m JOIN job j ON j.id=m.subject AND j.state='done' WHERE m.target=? AND {state} IN (?, ?)",
        (target, *SETTLED),
    )
    errors = store.rows(
        f"SELECT m.progress FROM mirror m WHERE m.target=? AND {state}='failed' ORDER BY m.updated DESC LIMIT ?",
        (target, num_errors),
    )
    return MirrorCounts(done, settled, tuple(json.loads(progress) for (progress,) in errors))


def finished_mark(store: Store) -> tuple[Any, ...]:
    """Changes whenever another job ends well: what a follower looks at before it looks closer."""
    (found,) = store.rows("SELECT count(*), max(ended) FROM job WHERE state='done'")
    return tuple(found)


def mirrored_jobs(store: Store, model_ids: Sequence[str]) -> list[MirroredRow]:
    """What was sent anywhere of the jobs that made or judged these models."""
    return [
        MirroredRow(target, subject, remote, json.loads(progress), updated)
        for target, subject, remote, progress, updated in store.rows(
            "SELECT r.target, r.subject, r.remote, r.progress, r.updated FROM mirror r JOIN job j ON j.id=r.subject"
            " WHERE coalesce(j.model_id, j.parent_model_id) IN (SELECT value FROM json_each(?)) AND r.remote!=''"
            " ORDER BY r.target, r.updated",
            (json.dumps(list(model_ids)),),
        )
    ]
