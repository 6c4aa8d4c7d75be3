"""Deleting models: what would go, the deed, and its undoing.

A deleted model is out of every list at once, but keeps its weights, figures, tags and aliases until `store.cleaning.clean` runs:
until then `restore` brings it back whole. After that a tombstone stays, so that what descends from it still verifies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from store.ancestry import descendants, free_name
from store.db import Store, execute
from store.errors import StoreError
from store.identity import now
from store.job_rows import ENDED
from store.mirrored import MirroredRow, mirrored_jobs
from store.model_rows import ModelRow, get_model, load_rows


@dataclass(frozen=True)
class DeletePreview:
    """What deleting a model would take: itself, its living descendants, files that nobody else needs, aliases, figures.

    `bytes_freed` (by the next clean-up) counts the model alone, `bytes_freed_with_descendants` all of them. `jobs_in_the_way` must
    be cancelled first. `copies` are runs of these models elsewhere, which stay there.
    """

    model: ModelRow
    descendants: tuple[ModelRow, ...]
    bytes_freed: int
    bytes_freed_with_descendants: int
    aliases: tuple[str, ...]
    num_evaluations: int
    jobs_in_the_way: tuple[str, ...]
    copies: tuple[MirroredRow, ...]

    @property
    def is_leaf(self) -> bool:
        return not self.descendants


_IDS = "(SELECT value FROM json_each(?))"
"""A list of ids as one parameter: SQLite takes no more than 32,766 of them."""


def _bytes_freed(store: Store, ids: list[str]) -> int:
    """Bytes of the blobs that only these models, and others that are deleted already, need (equal weights are stored once)."""
    owned = f"r.owner_kind IN ('model', 'image') AND r.owner IN {_IDS}"
    gone = "r.owner_kind IN ('model', 'image') AND r.owner IN (SELECT id FROM model WHERE deleted IS NOT NULL)"
    ((total,),) = store.rows(
        "SELECT coalesce(sum(b.bytes), 0) FROM blob b WHERE EXISTS (SELECT 1 FROM artifact_reference r WHERE"
        f" r.digest=b.digest AND {owned}) AND NOT EXISTS (SELECT 1 FROM artifact_reference r WHERE r.digest=b.digest"
        f" AND NOT ({owned}) AND NOT ({gone}))",
        (json.dumps(ids), json.dumps(ids)),
    )
    return int(total)


_BUSY = (
    f"SELECT id FROM job WHERE (parent_model_id IN {_IDS} OR (parent_model_id IS NULL AND parent_job_id IN"
    f" (SELECT id FROM job WHERE model_id IN {_IDS})) OR json_extract(spec, '$.plan') IN {_IDS})"
    f" AND state NOT IN ({', '.join(repr(state) for state in ENDED)}) ORDER BY id"
)
"""Jobs that still need a model, also those that name it as what another job made, or whose plan they are to apply."""


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
        jobs_in_the_way=tuple(str(row[0]) for row in store.rows(_BUSY, [json.dumps(ids)] * 3)),
        copies=tuple(mirrored_jobs(store, ids)),
    )


def delete_model(store: Store, ref: str, *, descendants: bool = False, keep_descendants: bool = False) -> tuple[str, ...]:
    """Delete a leaf, a model with all its descendants, or (`keep_descendants`) an inner model alone: the ids gone.

    Everything stays on the disk until the next clean-up. Raises StoreError(has_descendants, in_use).
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
        busy = [str(row[0]) for row in execute(session, _BUSY, [json.dumps(ids)] * 3)]
        if busy:
            raise StoreError(
                f"{len(busy)} job{'s' if len(busy) > 1 else ''} still need{'' if len(busy) > 1 else 's'} this model.",
                code="in_use",
                given=preview.model.id,
                legal=list(busy),
                next="Cancel the job first, or wait for its end.",
            )
        # One moment for all: `restore` undoes a deletion as a whole.
        execute(session, f"UPDATE model SET deleted=? WHERE id IN {_IDS} AND deleted IS NULL", (now(), json.dumps(ids)))
    return tuple(ids)


def deleted_models(store: Store) -> list[ModelRow]:
    """Deleted models that can still be restored, the last deleted first."""
    return load_rows(store, "WHERE m.deleted IS NOT NULL AND m.blob_digest IS NOT NULL", order="m.deleted DESC, m.created")


def restore(store: Store, ref: str) -> tuple[str, ...]:
    """Undo a deletion: the model and what was deleted with it come back, with all that they had. The ids restored.

    A name that was taken meanwhile gets a number. Raises StoreError(unknown_model, ambiguous, not_deleted, cleaned).
    """
    named = [row for row in deleted_models(store) if row.name == ref.strip()]
    row = named[0] if named else get_model(store, ref, deleted=True)
    if row.deleted is None:
        raise StoreError(
            f"{row.name} ({row.id}) is not deleted.",
            code="not_deleted",
            given=ref,
            legal=[m.id for m in deleted_models(store)[:10]],
        )
    with store.write() as session:
        going = execute(
            session,
            "SELECT id, name FROM model WHERE deleted=? AND blob_digest IS NOT NULL ORDER BY created, rowid",
            (row.deleted,),
        ).fetchall()
        if row.id not in {model_id for model_id, _ in going}:
            raise StoreError(
                f"{row.name} ({row.id}) was cleaned away.",
                code="cleaned",
                given=ref,
                legal=[m.id for m in deleted_models(store)[:10]],
                next="Make it again from its record, or bring it back from an archive.",
            )
        for model_id, name in going:
            free = free_name(session, name, but_for=model_id)
            execute(session, "UPDATE model SET deleted=NULL, name=? WHERE id=?", (free, model_id))
    return tuple(str(model_id) for model_id, _ in going)
