"""What a mirror reads job by job: the points of its curves as they were logged, and the evaluations that it recorded.

What was sent where stands in `store.mirrored`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from store.db import Store
from store.metrics import unpack
from store.scores import ScoresRow


@dataclass(frozen=True)
class Point:
    """All metrics that a job logged at one step; `time` is seconds since 1970."""

    step: int
    time: float
    values: dict[str, float]


def points(store: Store, job_id: str) -> list[Point]:
    """Every step of a job by rising step, with nothing thinned out."""
    names: dict[str, list[str]] = {}
    found = []
    for step, moment, text, packed in store.rows(
        "SELECT m.step, m.time, k.names, m.packed FROM metric m JOIN metric_key_set k ON k.id=m.key_set"
        " WHERE m.job=? ORDER BY m.step",
        (job_id,),
    ):
        if text not in names:
            names[text] = json.loads(text)
        found.append(Point(step, moment, dict(zip(names[text], unpack(packed), strict=True))))
    return found


def evaluations(store: Store, job_id: str) -> list[ScoresRow]:
    """The evaluations that a job recorded and that no later one has replaced."""
    found = []
    for model, protocol, split, created, content in store.rows(
        "SELECT s.model, s.protocol, s.split, s.created, p.content FROM score_set s JOIN protocol p ON p.id=s.protocol"
        " WHERE s.job_id=? ORDER BY s.model, s.split, s.protocol",
        (job_id,),
    ):
        means = dict(
            store.rows(
                "SELECT metric, value FROM score WHERE model=? AND protocol=? AND split=? ORDER BY metric",
                (model, protocol, split),
            )
        )
        found.append(ScoresRow(model, protocol, json.loads(content), split, means, job_id, created))
    return found
