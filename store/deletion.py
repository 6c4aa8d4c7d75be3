"""Deleting models: what would go, then the deed. A tombstone stays, so that what descends from it still verifies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from store.ancestry import descendants
from store.db import Store, execute
from store.errors import StoreError
from store.identity import now
from store.job_rows import ENDED
from store.model_rows import ModelRow, get_model
from store.references import drop_references, sweep

_SCORED = ("score", "image_score", "score_set", "image")


@dataclass(frozen=True)
class DeletePreview:
    """What deleting a model would take: itself, its living descendants, files that nobody else needs, aliases, figures.

    `bytes_freed` counts the model alone, `bytes_freed_with_descendants` all of them. `jobs_in_the_way` must be
    cancelled first.
    """

    model: ModelRow
    descendants: tuple[ModelRow, ...]
    bytes_freed: int
    bytes_freed_with_descendants: int
    aliases: tuple[str, ...]
    num_evaluations: int
    jobs_in_the_way: tuple[str, ...]

    @property
    def is_leaf(self) -> bool:
        return not self.descendants


def _marks(ids: list[str]) -> str:
    return ",".join("?" * len(ids))


def _bytes_freed(store: Store, ids: list[str]) -> int:
    """Bytes of the blobs that only these models need (equal weights are stored once, so others may need them too)."""
    owned = f"r.owner_kind IN ('model', 'image') AND r.owner IN ({_marks(ids)})"
    ((total,),) = store.rows(
        "SELECT coalesce(sum(b.bytes), 0) FROM blob b WHERE EXISTS (SELECT 1 FROM artifact_reference r WHERE"
        f" r.digest=b.digest AND {owned}) AND NOT EXISTS (SELECT 1 FROM artifact_reference r WHERE r.digest=b.digest"
        f" AND NOT ({owned}))",
        (*ids, *ids),
    )
    return int(total)


def _jobs_in_the_way(rows: list[tuple[Any, ...]]) -> tuple[str, ...]:
    return tuple(str(row[0]) for row in rows)


def _busy_sql(ids: list[str]) -> str:
    ended = ", ".join(f"'{state}'" for state in ENDED)
    return f"SELECT id FROM job WHERE parent_model_id IN ({_marks(ids)}) AND state NOT IN ({ended}) ORDER BY id"


def preview_delete(store: Store, ref: str) -> DeletePreview:
    """What would go. Raises StoreError(unknown_model, ambiguous, deleted)."""
    model = get_model(store, ref)
    below = tuple(descendants(store, model.id))
    ids = [model.id, *(row.id for row in below)]
    ((evaluations,),) = store.rows("SELECT count(*) FROM score_set WHERE model=?", (model.id,))
    return DeletePreview(
        model=model,
        descendants=below,
        bytes_freed=_bytes_freed(store, [model.id]),
        bytes_freed_with_descendants=_bytes_freed(store, ids),
        aliases=model.aliases,
        num_evaluations=evaluations,
        jobs_in_the_way=_jobs_in_the_way(store.rows(_busy_sql(ids), ids)),
    )


def delete_model(store: Store, ref: str, *, descendants: bool = False, keep_descendants: bool = False) -> tuple[str, ...]:
    """Delete a leaf, a model with all its descendants, or (`keep_descendants`) an inner model alone: the ids gone.

    Weights, pictures, figures, tags and aliases go; the row stays as a tombstone. Raises StoreError(has_descendants,
    in_use).
    """
    preview = preview_delete(store, ref)
    if preview.descendants and not descendants and not keep_descendants:
        raise StoreError(
            f"{preview.model.name} has {len(preview.descendants)} descendants.",
            code="has_descendants",
            given=preview.model.id,
            legal=[row.id for row in preview.descendants[:10]],
            next="Delete them too, or delete this one alone and keep a tombstone in the tree.",
        )
    going = (*preview.descendants[::-1], preview.model) if descendants else (preview.model,)
    ids = [row.id for row in going]
    with store.write() as session:
        busy = _jobs_in_the_way(execute(session, _busy_sql(ids), ids).fetchall())
        if busy:
            raise StoreError(
                f"{len(busy)} job{'s' if len(busy) > 1 else ''} still need{'' if len(busy) > 1 else 's'} this model.",
                code="in_use",
                given=preview.model.id,
                legal=list(busy),
                next="Cancel the job first, or wait for its end.",
            )
        for model_id in ids:
            _bury(session, model_id)
    sweep(store)
    return tuple(ids)


def _bury(session: Session, model_id: str) -> None:
    for table in _SCORED:
        execute(session, f"DELETE FROM {table} WHERE model=?", (model_id,))
    execute(session, "DELETE FROM alias WHERE model=?", (model_id,))
    execute(session, "DELETE FROM tag WHERE model=?", (model_id,))
    drop_references(session, "model", model_id)
    drop_references(session, "image", model_id)
    execute(session, "UPDATE model SET deleted=?, blob_digest=NULL WHERE id=?", (now(), model_id))
