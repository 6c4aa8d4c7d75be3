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
