"""Models as they leave the store, and how they are found: by id, unique id prefix, alias or exact name.

A list of 1,000 models must cost under 30 ms, so config, layout (up to 250 KB of kept indices for the largest variants)
and spec are read when first looked at, and parsed then.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from store.db import Store
from store.errors import StoreError
from store.identity import ID_DIGITS, MIN_PREFIX_DIGITS

Texts = tuple[str, str, str]

_MODEL_ID = re.compile(rf"m_[0-9a-f]{{{ID_DIGITS}}}")
_PREFIX = re.compile(rf"(?:m_)?([0-9a-f]{{{MIN_PREFIX_DIGITS},{ID_DIGITS}}})")

_COLUMNS = (
    "m.id, m.name, m.kind, m.family, m.weights_digest, m.blob_digest, m.bytes, m.dataset_digest, m.job_id, m.note,"
    " m.created, m.facts, m.deleted"
)


@dataclass(frozen=True)
class ModelRow:
    """One model, detached from the database. `config`, `layout` and `spec` are dicts, parsed when first asked for."""

    id: str
    name: str
    kind: str
    family: str
    weights_digest: str
    blob_digest: str | None
    bytes: int
    dataset: dict[str, Any] | None
    job_id: str | None
    note: str
    created: str
    facts: dict[str, float]
    parents: tuple[tuple[str, str], ...]
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    deleted: str | None
    texts: Texts | Callable[[], Texts] = field(repr=False, compare=False)

    def __hash__(self) -> int:
        return hash(self.id)

    @cached_property
    def _texts(self) -> Texts:
        return self.texts() if callable(self.texts) else self.texts

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads(self._texts[0])  # type: ignore[no-any-return]

    @cached_property
    def layout(self) -> dict[str, Any]:
        return json.loads(self._texts[1])  # type: ignore[no-any-return]

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The spec as hashed into the identity; the job holds the full one."""
        return json.loads(self._texts[2])  # type: ignore[no-any-return]

    @property
    def parent_id(self) -> str | None:
        """The model that this one was made from (role parent), if any."""
        return next((parent for role, parent in self.parents if role == "parent"), None)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "texts"}
        shown["parents"] = [list(pair) for pair in self.parents]
        return {
            **shown,
            "tags": list(self.tags),
            "aliases": list(self.aliases),
            "config": self.config,
            "layout": self.layout,
            "spec": self.spec,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: self.__dict__[name] for name in self.__dataclass_fields__}, "texts": self._texts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _made(fields: dict[str, Any]) -> ModelRow:
    # The generated __init__ of a frozen dataclass costs 11 us, a quarter of a list's time.
    row = object.__new__(ModelRow)
    row.__dict__.update(fields)
    return row


def load_rows(
    store: Store,
    where: str = "",
    parameters: Sequence[Any] = (),
    *,
    order: str = "m.created DESC, m.rowid DESC",
    limit: int | None = None,
) -> list[ModelRow]:
    """Models matching a condition over `model m`."""
    tail = f"{where} ORDER BY {order}" + (f" LIMIT {int(limit)}" if limit is not None else "")
    found = store.rows(f"SELECT {_COLUMNS} FROM model m {tail}", parameters)
    if not found:
        return []
    parents: dict[str, list[tuple[str, str]]] = defaultdict(list)
    tags: dict[str, list[str]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    few = len(found) <= 200
    ids = [row[0] for row in found] if few else []
    marks = ",".join("?" * len(ids))
    for child, role, parent in store.rows(
        "SELECT child, role, parent FROM edge" + (f" WHERE child IN ({marks})" if few else ""), ids
    ):
        parents[child].append((role, parent))
    for model, tag in store.rows(
        "SELECT model, tag FROM tag" + (f" WHERE model IN ({marks})" if few else "") + " ORDER BY tag", ids
    ):
        tags[model].append(tag)
    for name, model in store.rows("SELECT name, model FROM alias ORDER BY name"):
        names[model].append(name)
    datasets: dict[str, dict[str, Any]] = {}
    for digest in {row[7] for row in found if row[7] is not None}:
        ((identity,),) = store.rows("SELECT identity FROM dataset WHERE digest=?", (digest,))
        datasets[digest] = json.loads(identity)
    facts = json.loads(f"[{','.join([row[11] for row in found])}]")
    return [
        _made(
            {
                "id": row[0],
                "name": row[1],
                "kind": row[2],
                "family": row[3],
                "weights_digest": row[4],
                "blob_digest": row[5],
                "bytes": row[6],
                "dataset": datasets[row[7]] if row[7] is not None else None,
                "job_id": row[8],
                "note": row[9],
                "created": row[10],
                "facts": figures,
                "parents": tuple(parents.get(row[0], ())),
                "tags": tuple(tags.get(row[0], ())),
                "aliases": tuple(names.get(row[0], ())),
                "deleted": row[12],
                "texts": partial(_texts_of, store, row[0]),
            }
        )
        for row, figures in zip(found, facts, strict=True)
    ]


def _texts_of(store: Store, model_id: str) -> Texts:
    config, layout, spec = store.rows("SELECT config, layout, spec FROM model_text WHERE model=?", (model_id,))[0]
    return config, layout, spec


def resolve_model(store: Store, ref: str, *, deleted: bool = False) -> str:
    """The id that `ref` means: an id, an alias, an exact name, or a unique prefix of 6 or more digits.

    Raises StoreError(unknown_model, ambiguous, deleted).
    """
    ref = str(ref).strip()
    if _MODEL_ID.fullmatch(ref):
        found = store.rows("SELECT id, deleted, name FROM model WHERE id=?", (ref,))
    else:
        found = store.rows(
            "SELECT m.id, m.deleted, m.name FROM alias a JOIN model m ON m.id=a.model WHERE a.name=? AND m.deleted IS NULL",
            (ref,),
        ) or store.rows("SELECT id, deleted, name FROM model WHERE name=? AND deleted IS NULL ORDER BY created", (ref,))
        prefix = _PREFIX.fullmatch(ref)
        if not found and prefix is not None:
            low = f"m_{prefix[1]}"
            found = store.rows(
                "SELECT id, deleted, name FROM model WHERE id>=? AND id<? ORDER BY deleted IS NOT NULL, id",
                (low, low + "g"),
            )
            live = [row for row in found if row[1] is None]
            found = live or found
    if len(found) > 1:
        raise StoreError(
            f"“{ref}” fits {len(found)} models.",
            code="ambiguous",
            given=ref,
            legal=[row[0] for row in found[:10]],
            next="Give the full id, or more of its digits.",
        )
    if not found:
        raise unknown_model(store, ref)
    ((model_id, gone, name),) = found
    if gone is not None and not deleted:
        raise StoreError(
            f"{name} ({model_id}) was deleted on {gone[:10]}.",
            code="deleted",
            given=ref,
            legal="a model that is in the store",
            next="Run the job that made it again (its spec is on record), or choose another model.",
        )
    return str(model_id)


def unknown_model(store: Store, ref: str) -> StoreError:
    """The error for a reference that fits nothing, with the nearest names."""
    known = [row[0] for row in store.rows("SELECT name FROM model WHERE deleted IS NULL ORDER BY created DESC LIMIT 500")]
    known += [row[0] for row in store.rows("SELECT name FROM alias")]
    near = difflib.get_close_matches(ref, known, n=3, cutoff=0.5)
    advice = f"Did you mean {' or '.join(near)}? " if near else ""
    if not known:
        advice = "The store is empty: import a model first. "
    return StoreError(
        f"No model is called “{ref}”.",
        code="unknown_model",
        given=ref,
        legal=f"an id, {MIN_PREFIX_DIGITS} or more digits of one, an alias, or an exact name",
        next=advice + "The Lineage page and `python -m core lineage` list all models.",
    )


def get_model(store: Store, ref: str, *, deleted: bool = False) -> ModelRow:
    """One model. `deleted=True` also finds tombstones. Raises StoreError(unknown_model, ambiguous, deleted)."""
    model_id = resolve_model(store, ref, deleted=deleted)
    (row,) = load_rows(store, "WHERE m.id=?", (model_id,))
    row.__dict__["texts"] = _texts_of(store, model_id)
    return row


def get_models(store: Store, ids: Iterable[str]) -> dict[str, ModelRow]:
    """Models by full id, tombstones included; ids that are not there are left out."""
    wanted = list(dict.fromkeys(ids))
    rows: list[ModelRow] = []
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        rows += load_rows(store, f"WHERE m.id IN ({','.join('?' * len(part))})", part)
    by_id = {row.id: row for row in rows}
    return {model_id: by_id[model_id] for model_id in wanted if model_id in by_id}


def list_models(store: Store, *, limit: int | None = None, text: str | None = None, deleted: bool = False) -> list[ModelRow]:
    """Models, newest first; `text` is looked for in names, ids, kinds, notes, tags and aliases, whatever the case."""
    where = "WHERE 1" if deleted else "WHERE m.deleted IS NULL"
    parameters: list[Any] = []
    if text and text.strip():
        escaped = text.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        pattern = f"%{escaped}%"
        where += (
            " AND (m.name LIKE ? ESCAPE '\\' OR m.id LIKE ? ESCAPE '\\' OR m.kind LIKE ? ESCAPE '\\'"
            " OR m.note LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM tag t WHERE t.model=m.id AND t.tag LIKE ?"
            " ESCAPE '\\')"
            " OR EXISTS (SELECT 1 FROM alias a WHERE a.model=m.id AND a.name LIKE ? ESCAPE '\\'))"
        )
        parameters = [pattern] * 6
    return load_rows(store, where, parameters, limit=limit)
