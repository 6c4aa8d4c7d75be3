"""All models at once, as little of each as a drawing of the whole forest needs: 10,000 in a tenth of a second.

Rows are plain tuples, read past the ORM; nothing of `model_text` but the pruning method is looked at.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, NamedTuple

from store.db import Store


class Leaf(NamedTuple):
    """One living model. `parent_id` is the one that it was made from, `teacher_id` the one that it learnt from, where they are known."""

    id: str
    name: str
    kind: str
    parent_id: str | None
    teacher_id: str | None
    note: str
    created: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...]


def leaves(store: Store) -> list[Leaf]:
    """Living models, newest first."""
    tags: dict[str, list[str]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    roles: dict[str, dict[str, str]] = {"parent": {}, "teacher": {}}
    for model, tag in store.rows("SELECT model, tag FROM tag ORDER BY tag"):
        tags[model].append(tag)
    for name, model in store.rows("SELECT name, model FROM alias ORDER BY name"):
        names[model].append(name)
    for child, role, parent in store.rows("SELECT child, role, parent FROM edge ORDER BY parent DESC"):
        roles[role][child] = parent
    parents, teachers = roles["parent"], roles["teacher"]
    rows = store.rows("SELECT id, name, kind, note, created FROM model WHERE deleted IS NULL ORDER BY created DESC, rowid DESC")
    return [
        Leaf(
            ref,
            name,
            kind,
            parents.get(ref),
            teachers.get(ref),
            note,
            created,
            tuple(tags.get(ref, ())),
            tuple(names.get(ref, ())),
        )
        for ref, name, kind, note, created in rows
    ]


def figures_stamp(store: Store) -> tuple[Any, ...]:
    """Changes whenever `all_figures` would."""
    (row,) = store.rows(
        "SELECT (SELECT max(rowid) FROM model), (SELECT total(rowid) FROM model WHERE deleted IS NULL), (SELECT max(created) FROM"
        " score_set), (SELECT count(*) FROM score_set), (SELECT max(id) FROM measurement)"
    )
    return tuple(row)


def all_figures(store: Store) -> tuple[dict[str, dict[str, float]], int]:
    """Figures of every living model: facts, means of the last test evaluation, and the newest benchmark.

    Quality is of one protocol, that of most models; the second value counts the models that were last evaluated otherwise.
    """
    found: dict[str, dict[str, float]] = {}
    rows = store.rows("SELECT id, facts FROM model WHERE deleted IS NULL")
    for (ref, _), facts in zip(rows, json.loads(f"[{','.join([row[1] for row in rows])}]"), strict=True):
        found[ref] = facts
    last = dict(store.rows("SELECT model, protocol FROM score_set WHERE split='test' ORDER BY created"))
    last = {ref: protocol for ref, protocol in last.items() if ref in found}
    counts: dict[str, int] = defaultdict(int)
    for protocol in last.values():
        counts[protocol] += 1
    shared = max(counts, key=lambda protocol: counts[protocol], default=None)
    if shared is not None:
        for ref, metric, value in store.rows(
            "SELECT model, metric, value FROM score WHERE split='test' AND protocol=? AND value IS NOT NULL", (shared,)
        ):
            if last.get(ref) == shared:
                found[ref][metric] = value
    measured = store.rows("SELECT model, figures FROM measurement_row ORDER BY measurement")
    for (ref, _), row in zip(measured, json.loads(f"[{','.join([row[1] for row in measured])}]"), strict=True):
        if ref in found:
            found[ref].update({key: value for key, value in row.items() if isinstance(value, int | float)})
    return found, len(last) - (counts[shared] if shared is not None else 0)


def methods(store: Store) -> dict[str, str]:
    """The pruning method of each model that has one. Specs never change, so what was read once holds."""
    return dict(
        (str(ref), str(method))
        for ref, method in store.rows(
            "SELECT model, json_extract(spec, '$.method') FROM model_text WHERE json_extract(spec, '$.method') IS NOT NULL"
        )
    )
