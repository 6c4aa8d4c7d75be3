"""Writing on models, deleting and restoring them, cleaning up, and moving branches between stores. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import store as st
from core.mirror.copies import describe_copy
from store import ModelRow, Store
from store.archive import Exported, Imported, export_branch, import_archive


@dataclass(frozen=True)
class Deletion:
    """What deleting a model takes: its and its descendants' names, bytes that the next clean-up frees, and what is in the way.

    `copies` are runs elsewhere, which stay there; `left_behind` names the descendants of a model that is deleted alone. `not_made_of_it`
    names those of them that only learnt from it or kept its plan, and what was made of such.
    """

    names: tuple[str, ...]
    bytes: int
    jobs_in_the_way: tuple[str, ...]
    copies: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    not_made_of_it: tuple[str, ...] = ()


class Housekeeping:
    """The part of `ModelManager` that keeps the store in order."""

    store: Store

    def annotate(
        self,
        ref: str,
        *,
        note: str | None = None,
        tag: str | None = None,
        untag: str | None = None,
        alias: str | None = None,
        name: str | None = None,
    ) -> ModelRow:
        """Sets the note, adds or takes off a tag, points an alias here, renames; none of it is part of a model's identity."""
        row = st.get_model(self.store, ref)
        if note is not None:
            row = st.set_note(self.store, row.id, note)
        if tag is not None:
            row = st.add_tag(self.store, row.id, tag)
        if untag is not None:
            row = st.remove_tag(self.store, row.id, untag)
        if alias is not None:
            row = st.set_alias(self.store, alias, row.id)
        if name is not None:
            row = st.rename_model(self.store, row.id, name)
        return row

    def deletion(self, ref: str, *, alone: bool = False) -> Deletion:
        """What `delete` would take."""
        found = st.preview_delete(self.store, ref)
        below = tuple(row.name for row in found.descendants)
        made = {row.id for row in st.descendants(self.store, found.model.id, made_of=True)}
        common = {
            "jobs_in_the_way": found.jobs_in_the_way,
            "copies": tuple(describe_copy(copy) for copy in found.copies),
            "not_made_of_it": tuple(row.name for row in found.descendants if row.id not in made),
        }
        if alone:
            return Deletion((found.model.name,), found.bytes_freed, left_behind=below, **common)
        return Deletion((found.model.name, *below), found.bytes_freed_with_descendants, **common)

    def delete(self, ref: str, *, alone: bool = False) -> tuple[str, ...]:
        """Deletes a model and its descendants, or it alone; `restore` undoes that until the next `clean_up`. The ids gone."""
        return st.delete_model(self.store, ref, descendants=not alone, keep_descendants=alone)

    def deleted_models(self) -> list[ModelRow]:
        """Models that can still be restored, the last deleted first."""
        return st.deleted_models(self.store)

    def restore(self, ref: str) -> tuple[str, ...]:
        """Undoes a deletion: the model and what was deleted with it. The ids that are back."""
        return st.restore(self.store, ref)

    def cleanable(self, *, with_orphans: bool = True) -> tuple[int, int]:
        """(deleted models, bytes) that `clean_up` would take; a page leaves out the orphans, which are looked for on the disk."""
        return st.cleanable(self.store, with_orphans=with_orphans)

    def clean_up(self) -> st.CleanReport:
        """Makes deletions final, frees what nothing needs, and says what the store took before and takes now."""
        return st.clean(self.store)

    def export_branch(self, ref: str, target: Path | str, *, with_descendants: bool = False) -> Exported:
        """Writes a model and all that it goes back to (and all that was made from it) as one file; see `store.archive`."""
        return export_branch(self.store, ref, target, with_descendants=with_descendants)

    def import_archive(self, source: Path | str) -> Imported:
        """Takes such a file in, whole or not at all; ids stay."""
        return import_archive(self.store, source)
