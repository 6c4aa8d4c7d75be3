"""All models at once, as little of each as a drawing of the whole forest needs: 10,000 in a tenth of a second.

Rows are plain tuples, read past the ORM; nothing of `model_text` but the pruning method is looked at.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from store.db import Store


class Leaf(NamedTuple):
    """One living model. `parent_id` is the one that it was made from, `teacher_id` the one that it learnt from, `plan_id` the one whose
    units it keeps, where they are known."""

    id: str
    name: str
    kind: str
    parent_id: str | None
    teacher_id: str | None
    plan_id: str | None
    note: str
    created: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...]


def leaves(store: Store) -> list[Leaf]:
    """Living models, newest first."""
    tags: dict[str, list[str]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    roles: dict[str, dict[str, str]] = defaultdict(dict)
    for model, tag in store.rows("SELECT model, tag FROM tag ORDER BY tag"):
        tags[model].append(tag)
    for name, model in store.rows("SELECT name, model FROM alias ORDER BY name"):
        names[model].append(name)
    for child, role, parent in store.rows("SELECT child, role, parent FROM edge ORDER BY parent DESC"):
        roles[role][child] = parent
    parents, teachers, plans = roles["parent"], roles["teacher"], roles["plan"]
    rows = store.rows("SELECT id, name, kind, note, created FROM model WHERE deleted IS NULL ORDER BY created DESC, rowid DESC")
    return [
        Leaf(
            ref,
            name,
            kind,
            parents.get(ref),
            teachers.get(ref),
            plans.get(ref),
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


CONDITIONS = ("device_name", "threads", "image_size", "batch_size", "torch", "sparse_kernels")
"""Settings of a benchmark, besides device and dtype, that its milliseconds and bytes depend on."""


class LeftOut(NamedTuple):
    """How many models were last evaluated on other images, or benchmarked under other conditions, than most."""

    quality: int
    cost: int


def all_figures(store: Store) -> tuple[dict[str, dict[str, float]], LeftOut]:
    """Figures of every living model: facts, means of the last test evaluation, and the newest benchmark.

    Quality is of one protocol, cost of one device, dtype, threads and sizes: those of most models. Others are left out, and counted.
    """
    found: dict[str, dict[str, float]] = {}
    rows = store.rows("SELECT id, facts FROM model WHERE deleted IS NULL")
    for (ref, _), facts in zip(rows, json.loads(f"[{','.join([row[1] for row in rows])}]"), strict=True):
        found[ref] = facts
    last = dict(store.rows("SELECT model, protocol FROM score_set WHERE split='test' ORDER BY created"))
    last = {ref: protocol for ref, protocol in last.items() if ref in found}
    shared = _most(last.values())
    if shared is not None:
        for ref, metric, value in store.rows(
            "SELECT model, metric, value FROM score WHERE split='test' AND protocol=? AND value IS NOT NULL", (shared,)
        ):
            if last.get(ref) == shared:
                found[ref][metric] = value
    under = {
        run: _conditions(*rest) for run, *rest in store.rows("SELECT id, device, dtype, settings FROM measurement ORDER BY id")
    }
    benchmarked = store.rows("SELECT measurement, model, figures FROM measurement_row ORDER BY measurement")
    benchmarked = [row for row in benchmarked if row[1] in found]
    # Of each model by its newest run under each: a second device does not hide the first.
    ways = {(ref, under[run]) for run, ref, _ in benchmarked}
    usual = _most(condition for _, condition in sorted(ways, reverse=True))
    newest = {ref: text for run, ref, text in benchmarked if under[run] == usual}
    for (ref, _), row in zip(newest.items(), json.loads(f"[{','.join(newest.values())}]"), strict=True):
        found[ref].update({key: value for key, value in row.items() if isinstance(value, int | float)})
    others = {ref for _, ref, _ in benchmarked} - newest.keys()
    return found, LeftOut(sum(protocol != shared for protocol in last.values()), len(others))


def _conditions(device: str, dtype: str, settings: str) -> str:
    """What milliseconds were taken under, as text to compare."""
    values = json.loads(settings)
    return json.dumps([device, dtype, *(values.get(key) for key in CONDITIONS)])


def _most(values: Iterable[str]) -> str | None:
    """The most frequent value, of equals the first; None of nothing."""
    counts = Counter(values)
    return max(counts, key=lambda value: counts[value], default=None)


def methods(store: Store) -> dict[str, str]:
    """The pruning method of each model that has one. Specs never change, so what was read once holds."""
    return dict(
        (str(ref), str(method))
        for ref, method in store.rows(
            "SELECT model, json_extract(spec, '$.method') FROM model_text WHERE json_extract(spec, '$.method') IS NOT NULL"
        )
    )
