"""The whole forest of models for drawing, searching and focusing. No torch; figures are read anew only when they have changed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.compare import METRICS
from core.expressions import Subject, parse
from store import Store
from store.forest import Leaf, LeftOut, all_figures, figures_stamp, leaves, methods

SEARCHED = (*METRICS, "pruning_ratio")
"""Figures that a search may name."""
FOCUS = 300
"""At most this many models are drawn around the chosen one: more cannot be labelled."""


@dataclass(frozen=True, eq=False)
class Forest:
    """Living models, newest first, with their figures by id.

    `left_out` were last evaluated on other images than most, `cost_left_out` only ever benchmarked on other devices or sizes.
    """

    models: list[Leaf]
    figures: Mapping[str, Mapping[str, float]]
    methods: Mapping[str, str]
    left_out: int
    cost_left_out: int

    @cached_property
    def by_id(self) -> Mapping[str, Leaf]:
        """Models by id."""
        return {leaf.id: leaf for leaf in self.models}

    @cached_property
    def below(self) -> Mapping[str, Sequence[str]]:
        """Ids of what was made from a model, learnt from it or keeps its units, oldest first; without those of which nothing was."""
        found: dict[str, list[str]] = defaultdict(list)
        for leaf in reversed(self.models):
            for parent in dict.fromkeys(filter(None, (leaf.parent_id, leaf.teacher_id, leaf.plan_id))):
                found[parent].append(leaf.id)
        return dict(found)

    def find(self, text: str) -> list[Leaf]:
        """The models that a search expression fits. Raises CoreError(bad_search)."""
        test = parse(text, SEARCHED)
        return [leaf for leaf in self.models if test(self._subject(leaf))] if text.strip() else self.models

    def _subject(self, leaf: Leaf) -> Subject:
        method = self.methods.get(leaf.id)
        words = {
            "name": (leaf.name,), "id": (leaf.id,), "kind": (leaf.kind,), "method": (method,) if method else (),
            "note": (leaf.note,), "tag": leaf.tags, "alias": leaf.aliases, "created": (leaf.created,),
        }  # fmt: skip
        return Subject(words, self.figures[leaf.id])

    def around(self, ref: str, limit: int = FOCUS) -> tuple[list[Leaf], int]:
        """A model with its ancestors and its nearest descendants, newest first, and how many descendants did not fit."""
        by_id, below = self.by_id, self.below
        above: dict[str, None] = {}
        queue = deque([ref])
        while queue:
            leaf_here = by_id.get(queue.popleft())
            if leaf_here is not None and leaf_here.id not in above:
                above[leaf_here.id] = None
                queue.extend(filter(None, (leaf_here.parent_id, leaf_here.teacher_id, leaf_here.plan_id)))
        seen, order = {ref}, list[str]()
        queue = deque([ref])
        while queue:
            for child in below.get(queue.popleft(), ()):
                if child not in seen:
                    seen.add(child)
                    order.append(child)
                    queue.append(child)
        room = max(0, limit - len(above))
        shown = {*above, *order[:room]}
        return [leaf for leaf in self.models if leaf.id in shown], len(order) - len(order[:room])

    def range_of(self, key: str, refs: Iterable[str]) -> tuple[float, float] | None:
        """Lowest and highest value of a figure among models; None where none has it."""
        values = [value for ref in refs if (value := self.figures[ref].get(key)) is not None]
        return (min(values), max(values)) if values else None


@dataclass
class _Kept:
    """What was read last: the whole forest for a version of the database, its figures for a stamp of their own."""

    version: int = -1
    forest: Forest | None = None
    stamp: tuple[Any, ...] = ()
    figures: tuple[dict[str, dict[str, float]], LeftOut] = field(default_factory=lambda: ({}, LeftOut(0, 0)))
    methods: dict[str, str] = field(default_factory=dict)


class Forests:
    """The part of `ModelManager` that reads all models at once."""

    store: Store
    _kept_forest: _Kept | None = None

    def forest(self) -> Forest:
        """All living models; the same object as long as nothing in the store has changed."""
        version = self.store.version()
        kept = self._kept_forest
        if kept is not None and kept.version == version and kept.forest is not None:
            return kept.forest
        # A running job changes the store at each step, but the figures of models seldom.
        stamp = figures_stamp(self.store)
        figures = kept.figures if kept is not None and kept.stamp == stamp else all_figures(self.store)
        known = kept.methods if kept is not None and kept.stamp == stamp else methods(self.store)
        by_id, left_out = figures
        # A model that came between the two reads waits for the next.
        found = Forest([leaf for leaf in leaves(self.store) if leaf.id in by_id], by_id, known, *left_out)
        self._kept_forest = _Kept(version, found, stamp, figures, known)
        return found
