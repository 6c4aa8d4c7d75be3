"""The family tree: models come in here, with their parents, and are walked here.

A model never changes, and its id hashes its parents' ids, so no cycle can be made: a parent must be there before its
child. Adding a model whose identity is already there returns the one that is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session

from store.db import Store, execute
from store.errors import StoreError
from store.identity import IDENTITY_VERSION, canonical_bytes, digest_of, model_identity, now
from store.model_rows import ModelRow, get_model, get_models, load_rows, resolve_model
from store.models import Edge, Model, ModelText
from store.references import need_blob

ROLES = ("parent", "teacher", "plan")
MAX_NAME_LENGTH = 160
_LIKE_AN_ID = re.compile(r"[mjp]_[0-9a-f]{6,}")


@dataclass(frozen=True)
class NewModel:
    """A model to be stored; its weights already lie in the blob folder.

    `spec` is what identity hashes: pass the spec's identity part (the job keeps the full one). `parents` are (role,
    full id). `facts` are figures known by arithmetic, units in their names: parameters, nonzero_parameters, sparsity,
    encode_macs...
    """

    name: str
    kind: str
    family: str
    config: Mapping[str, Any]
    layout: Mapping[str, Any]
    spec: Mapping[str, Any]
    weights_digest: str
    blob_digest: str
    bytes: int
    parents: Sequence[tuple[str, str]] = ()
    dataset_identity: Mapping[str, Any] | None = None
    job: str | None = None
    note: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    spec_version: int = IDENTITY_VERSION


@dataclass(frozen=True)
class EdgeRow:
    """`child` was made from `parent` in `role`."""

    child: str
    parent: str
    role: str


def check_name(name: str) -> str:
    """A usable model name. Raises StoreError(bad_value)."""
    name = name.strip()
    if not name or len(name) > MAX_NAME_LENGTH or any(ord(letter) < 32 for letter in name) or _LIKE_AN_ID.fullmatch(name):
        raise StoreError(
            "That is no usable name for a model.",
            given=name,
            legal=f"1 to {MAX_NAME_LENGTH} printable characters that do not look like an id (m_1234ab)",
            next="Choose another name.",
        )
    return name


def add_model(store: Store, model: NewModel) -> ModelRow:
    """Store a model; one of the same identity is returned instead of stored twice.

    Raises StoreError: unknown_model or deleted (a parent), missing_blob, bad_value.
    """
    with store.write() as session:
        model_id = add_model_in(store, session, model)
    return get_model(store, model_id)


def add_model_in(store: Store, session: Session, model: NewModel) -> str:
    """`add_model` inside an open write transaction; returns the id."""
    name = check_name(model.name)
    identity = model_identity(
        model.kind,
        model.family,
        model.spec,
        model.parents,
        model.weights_digest,
        model.dataset_identity,
        spec_version=model.spec_version,
    )
    _check_parents(store, session, model.parents)
    known = execute(session, "SELECT digest, deleted FROM model WHERE id=?", (identity.id,)).fetchone()
    if known is not None:
        assert known[0] == identity.digest, f"two identities share the id {identity.id}"
        if known[1] is None:
            return identity.id
    need_blob(store, session, model.blob_digest, "weights", "model", identity.id, "weights", size=model.bytes)
    dataset = None
    if model.dataset_identity is not None:
        dataset = digest_of(model.dataset_identity)
        execute(
            session,
            "INSERT OR IGNORE INTO dataset (digest, identity, created) VALUES (?, ?, ?)",
            (dataset, canonical_bytes(model.dataset_identity).decode(), now()),
        )
    name = free_name(session, name)
    facts = json.dumps({key: value for key, value in model.facts.items() if value is not None}, sort_keys=True)
    if known is not None:
        # The same model made anew after its deletion: the tombstone comes back to life, with its edges and identity.
        execute(
            session,
            "UPDATE model SET deleted=NULL, name=?, blob_digest=?, bytes=?, job_id=?, note=?, facts=?, created=? WHERE id=?",
            (name, model.blob_digest, model.bytes, model.job, model.note, facts, now(), identity.id),
        )
        return identity.id
    session.add(
        Model(
            id=identity.id,
            digest=identity.digest,
            name=name,
            kind=model.kind,
            family=model.family,
            weights_digest=model.weights_digest,
            blob_digest=model.blob_digest,
            bytes=model.bytes,
            dataset_digest=dataset,
            job_id=model.job,
            note=model.note,
            facts=facts,
            created=now(),
        )
    )
    session.flush()
    session.add(
        ModelText(
            model=identity.id,
            canonical=identity.canonical,
            spec=canonical_bytes(model.spec).decode(),
            config=canonical_bytes(model.config).decode(),
            layout=canonical_bytes(model.layout).decode(),
        )
    )
    for role, parent in dict.fromkeys(tuple(pair) for pair in model.parents):
        session.add(Edge(child=identity.id, role=role, parent=parent))
    session.flush()
    return identity.id


def _check_parents(store: Store, session: Session, parents: Sequence[tuple[str, str]]) -> None:
    for role, parent in parents:
        if role not in ROLES:
            raise StoreError(f"“{role}” is no role of a parent.", given=role, legal=list(ROLES))
        found = execute(session, "SELECT deleted FROM model WHERE id=?", (parent,)).fetchone()
        if found is None or found[0] is not None:
            raise StoreError(
                f"The {role} {parent} is not in the store.",
                code="unknown_model" if found is None else "deleted",
                given=parent,
                legal="the full id of a model that is in the store",
                next="Import or make the parent first.",
            )


def free_name(session: Session, name: str, *, but_for: str = "") -> str:
    """`name`, or `name-2`, `name-3`... when living models have it already."""
    taken = {
        row[0]
        for row in execute(
            session,
            "SELECT name FROM model WHERE deleted IS NULL AND id!=? AND name>=? AND name<? UNION"
            " SELECT a.name FROM alias a JOIN model m ON m.id=a.model WHERE m.deleted IS NULL",
            (but_for, name, name + "\U0010ffff"),
        )
    }
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def parents(store: Store, ref: str) -> list[ModelRow]:
    """Direct parents in any role, tombstones included."""
    model_id = resolve_model(store, ref, deleted=True)
    found = store.rows("SELECT parent FROM edge WHERE child=? ORDER BY role, parent", (model_id,))
    return list(get_models(store, (row[0] for row in found)).values())


def children(store: Store, ref: str) -> list[ModelRow]:
    """Models made directly from this one, oldest first."""
    model_id = resolve_model(store, ref, deleted=True)
    return load_rows(
        store,
        "WHERE m.deleted IS NULL AND m.id IN (SELECT child FROM edge WHERE parent=?)",
        (model_id,),
        order="m.created, m.rowid",
    )


_ANCESTORS = (
    "WITH RECURSIVE line(id, depth) AS (SELECT ?, 0 UNION SELECT e.parent, line.depth+1 FROM edge e JOIN line ON"
    " e.child=line.id)"
    " SELECT id, MIN(depth) FROM line WHERE depth>0 GROUP BY id ORDER BY MIN(depth), id"
)
_DESCENDANTS = _ANCESTORS.replace("e.parent, line", "e.child, line").replace("e.child=line.id", "e.parent=line.id")
_MADE_OF = _DESCENDANTS.replace("e.parent=line.id", "e.parent=line.id AND e.role='parent'")


def ancestors(store: Store, ref: str) -> list[ModelRow]:
    """All models that this one goes back to, nearest first, tombstones included."""
    model_id = resolve_model(store, ref, deleted=True)
    return list(get_models(store, (row[0] for row in store.rows(_ANCESTORS, (model_id,)))).values())


def descendants(store: Store, ref: str, *, made_of: bool = False) -> list[ModelRow]:
    """All living models that go back to this one, nearest first; `made_of`: as their weights do, not by teachers or plans."""
    model_id = resolve_model(store, ref, deleted=True)
    found = get_models(store, (row[0] for row in store.rows(_MADE_OF if made_of else _DESCENDANTS, (model_id,))))
    return [row for row in found.values() if row.deleted is None]


def baseline_of(store: Store, ref: str) -> ModelRow:
    """The first ancestor along the parent role that has no parent itself; a baseline's baseline is itself."""
    model_id = resolve_model(store, ref, deleted=True)
    ((root,),) = store.rows(
        "WITH RECURSIVE line(id, depth) AS (SELECT ?, 0 UNION ALL SELECT (SELECT e.parent FROM edge e WHERE"
        " e.child=line.id"
        " AND e.role='parent' ORDER BY e.parent LIMIT 1), depth+1 FROM line WHERE line.id IS NOT NULL)"
        " SELECT id FROM line WHERE id IS NOT NULL ORDER BY depth DESC LIMIT 1",
        (model_id,),
    )
    return get_model(store, root, deleted=True)


def edges(store: Store) -> list[EdgeRow]:
    """All edges of living children (a parent may be a tombstone)."""
    return [
        EdgeRow(*row)
        for row in store.rows(
            "SELECT e.child, e.parent, e.role FROM edge e JOIN model m ON m.id=e.child WHERE m.deleted IS NULL"
            " ORDER BY m.created, m.rowid, e.role"
        )
    ]
