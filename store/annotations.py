"""What people write on models: aliases, tags, notes, names. None of it is part of a model's identity."""

from __future__ import annotations

from store.ancestry import check_name, free_name
from store.db import Store, execute
from store.errors import StoreError
from store.identity import now
from store.model_rows import ModelRow, get_model, resolve_model

MAX_TAG_LENGTH = 40
MAX_NOTE_LENGTH = 20_000
# A deleted model keeps its aliases until the clean-up, in case it is restored; meanwhile they point nowhere and can be taken.
_LIVING_ALIASES = "SELECT a.name, a.model FROM alias a JOIN model m ON m.id=a.model WHERE m.deleted IS NULL ORDER BY a.name"


def set_alias(store: Store, name: str, model_id: str) -> ModelRow:
    """Point an alias (current, best, ...) at a model, moving it when it exists.

    Raises StoreError(name_taken, bad_value).
    """
    target = resolve_model(store, model_id)
    name = check_name(name)
    with store.write() as session:
        if execute(session, "SELECT 1 FROM model WHERE name=? AND deleted IS NULL", (name,)).fetchone():
            raise StoreError(f"A model is called “{name}” already.", code="name_taken", given=name, legal="a free name")
        execute(
            session,
            "INSERT INTO alias (name, model, updated) VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET model=excluded.model, updated=excluded.updated",
            (name, target, now()),
        )
    return get_model(store, target)


def remove_alias(store: Store, name: str) -> None:
    """Drop an alias; one that is not there is no error."""
    with store.write() as session:
        execute(session, "DELETE FROM alias WHERE name=?", (name,))


def aliases(store: Store) -> dict[str, str]:
    """All aliases: name -> model id."""
    return dict((str(name), str(model)) for name, model in store.rows(_LIVING_ALIASES))


def set_note(store: Store, ref: str, note: str) -> ModelRow:
    """Replace a model's note."""
    model_id = resolve_model(store, ref)
    if len(note) > MAX_NOTE_LENGTH:
        raise StoreError("The note is too long.", given=len(note), legal=f"at most {MAX_NOTE_LENGTH} characters")
    with store.write() as session:
        execute(session, "UPDATE model SET note=? WHERE id=?", (note, model_id))
    return get_model(store, model_id)


def checked_tag(tag: str) -> str:
    """The tag without spaces around it; raises StoreError for what is none."""
    tag = tag.strip()
    if not tag or len(tag) > MAX_TAG_LENGTH or any(ord(letter) < 32 or letter == "," for letter in tag):
        raise StoreError(
            "That is no usable tag.", given=tag, legal=f"1 to {MAX_TAG_LENGTH} characters without commas or line breaks"
        )
    return tag


def add_tag(store: Store, ref: str, tag: str) -> ModelRow:
    """Put a word on a model; twice is once."""
    model_id, tag = resolve_model(store, ref), checked_tag(tag)
    with store.write() as session:
        execute(session, "INSERT OR IGNORE INTO tag (model, tag) VALUES (?, ?)", (model_id, tag))
    return get_model(store, model_id)


def remove_tag(store: Store, ref: str, tag: str) -> ModelRow:
    """Take a word off a model; one that is not there is no error."""
    model_id = resolve_model(store, ref)
    with store.write() as session:
        execute(session, "DELETE FROM tag WHERE model=? AND tag=?", (model_id, tag.strip()))
    return get_model(store, model_id)


def rename_model(store: Store, ref: str, name: str) -> ModelRow:
    """Give a model another name. Raises StoreError(name_taken) with a free one."""
    model_id = resolve_model(store, ref)
    name = check_name(name)
    with store.write() as session:
        free = free_name(session, name, but_for=model_id)
        if free != name:
            raise StoreError(f"“{name}” is taken.", code="name_taken", given=name, legal=free, next=f"“{free}” would be free.")
        execute(session, "UPDATE model SET name=? WHERE id=?", (name, model_id))
    return get_model(store, model_id)
