"""Does the store still say the truth? Ids are re-derived from the stored bytes, files re-hashed, edges compared.

Looked at as a whole, also: SQLite's own check of the file, pictures and plans, and files that nothing in the store names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from store.cleaning import orphans
from store.db import Store
from store.identity import identity_of
from store.model_rows import resolve_model


@dataclass(frozen=True)
class Problem:
    """Something that does not hold: which model (empty where it is of none), a code, a sentence."""

    model_id: str
    code: str
    message: str


def verify(store: Store, model: str | None = None, *, files: bool = True) -> list[Problem]:
    """Check one model, or the whole store (tombstones included); an empty list says that everything holds.

    `files=False` skips hashing. Raises StoreError(not_a_database) where the database itself cannot be read.
    """
    where, parameters = ("", ())
    checked: dict[str, bool] = {}
    problems: list[Problem] = []
    if model is not None:
        where, parameters = "WHERE id=?", (resolve_model(store, model, deleted=True),)  # type: ignore[assignment]
    else:
        damage = [str(line) for (line,) in store.rows("PRAGMA quick_check(3)") if line != "ok"]
        problems += [Problem("", "database", f"The database is damaged: {line}") for line in damage]
        without = store.rows("SELECT id FROM model WHERE id NOT IN (SELECT model FROM model_text)")
        problems += [Problem(row[0], "no_text", "The bytes that its id was hashed from are missing.") for row in without]
    sql = (
        "SELECT id, digest, canonical, kind, family, spec, weights_digest, dataset_digest, blob_digest, deleted, bytes"
        f" FROM model JOIN model_text ON model=id {where} ORDER BY created, model.rowid"
    )
    for row in store.rows(sql, parameters):
        problems += _identity(store, row)
        model_id, blob, gone, size = row[0], row[8], row[9], row[10]
        if gone is not None:
            continue
        if blob is None:
            problems.append(Problem(model_id, "no_weights", "The model has no weights on record."))
        elif not store.blobs.exists(blob):
            problems.append(Problem(model_id, "missing_blob", f"The weights are missing: {store.blobs.path(blob)}"))
        elif store.blobs.size(blob) != size:
            problems.append(Problem(model_id, "broken_blob", f"The weights are not {size} bytes: {store.blobs.path(blob)}"))
        elif files:
            if blob not in checked:
                checked[blob] = store.blobs.verify(blob)
            if not checked[blob]:
                problems.append(Problem(model_id, "broken_blob", f"The weights were changed on disk: {store.blobs.path(blob)}"))
    return problems if model is not None else problems + _other_files(store, checked, hashed=files)


def _other_files(store: Store, checked: dict[str, bool], *, hashed: bool) -> list[Problem]:
    """Pictures, plans and score arrays that are missing or altered, and files that nothing names."""
    found = []
    for digest, kind, owner_kind, owner, size in store.rows(
        "SELECT r.digest, b.kind, r.owner_kind, r.owner, b.bytes FROM artifact_reference r JOIN blob b ON b.digest=r.digest"
        " WHERE r.owner_kind!='model' ORDER BY r.owner_kind, r.owner, r.role"
    ):
        of = owner if owner_kind == "image" else ""
        path = store.blobs.path(digest)
        what = f"A file of kind {kind} that {owner} needs"
        if not path.is_file():
            found.append(Problem(of, "missing_blob", f"{what} is missing: {path}"))
            continue
        if digest not in checked:
            checked[digest] = path.stat().st_size == size and (not hashed or store.blobs.verify(digest))
        if not checked[digest]:
            found.append(Problem(of, "broken_blob", f"{what} was changed on disk: {path}"))
    return found + [Problem("", "orphan", f"{left.why}: {left.path} ({left.bytes:,} bytes)") for left in orphans(store)]


def _identity(store: Store, row: tuple) -> list[Problem]:  # type: ignore[type-arg]
    model_id, digest, canonical, kind, family, spec, weights, dataset = row[:8]
    derived = identity_of(canonical)
    if (derived.id, derived.digest) != (model_id, digest):
        return [Problem(model_id, "identity", f"The stored bytes hash to {derived.id}.")]
    said = json.loads(canonical)
    found = []
    for name, shown in (("kind", kind), ("family", family), ("spec", json.loads(spec)), ("weights", weights)):
        if said[name] != shown:
            found.append(Problem(model_id, "changed", f"The row's {name} is not the one that its id was hashed from."))
    lines = store.rows(
        "SELECT e.role, e.parent, m.id FROM edge e LEFT JOIN model m ON m.id=e.parent WHERE e.child=? ORDER BY e.role, e.parent",
        (model_id,),
    )
    if [list(line[:2]) for line in lines] != said["parents"]:
        found.append(Problem(model_id, "edges", "The edges are not the parents that its id was hashed from."))
    found += [Problem(model_id, "parent", f"The parent {line[1]} is missing.") for line in lines if line[2] is None]
    stored = store.rows("SELECT identity FROM dataset WHERE digest=?", (dataset,)) if dataset else []
    if said["dataset"] != (json.loads(stored[0][0]) if stored else None):
        found.append(Problem(model_id, "dataset", "The data set is not the one that its id was hashed from."))
    return found
