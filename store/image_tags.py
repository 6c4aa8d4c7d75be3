"""Words that people put on images of a data set. A source is named by whoever calls; rows are its row ids."""

from __future__ import annotations

from collections.abc import Sequence

from store.annotations import checked_tag
from store.db import Store, execute


def tag_rows(store: Store, source: str, rows: Sequence[str], tag: str) -> None:
    """Put a word on rows; twice is once. Raises StoreError for what is no tag."""
    word = checked_tag(tag)
    with store.write() as session:
        for row in rows:
            execute(session, "INSERT OR IGNORE INTO image_tag (source, row, tag) VALUES (?, ?, ?)", (source, row, word))


def untag_rows(store: Store, source: str, rows: Sequence[str], tag: str) -> None:
    """Take a word off rows; one that is not there is no error."""
    with store.write() as session:
        for row in rows:
            execute(session, "DELETE FROM image_tag WHERE source=? AND row=? AND tag=?", (source, row, tag.strip()))


def row_tags(store: Store, source: str) -> dict[str, tuple[str, ...]]:
    """Row id -> its words in their order, of the rows of a source that have any."""
    found: dict[str, tuple[str, ...]] = {}
    for row, tag in store.rows("SELECT row, tag FROM image_tag WHERE source=? ORDER BY row, tag", (source,)):
        found[str(row)] = (*found.get(str(row), ()), str(tag))
    return found
