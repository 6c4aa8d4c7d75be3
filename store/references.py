"""Who needs which blob. A blob row is written together with its first reference, and the file must be there by then."""

from __future__ import annotations

import time

from sqlmodel import Session

from store.db import Store, execute
from store.errors import StoreError
from store.identity import now

GRACE_S = 3600.0


def need_blob(
    store: Store,
    session: Session,
    digest: str,
    kind: str,
    owner_kind: str,
    owner: str,
    role: str,
    *,
    size: int | None = None,
) -> None:
    """Record that `owner` needs the blob. The write lock is held, so no clean-up can take the file in between.

    Raises StoreError(missing_blob) when its file is not there, so that nothing ever points at nothing.
    """
    there = store.blobs.size(digest)
    if size is not None and size != there:
        raise StoreError(f"Blob {digest[:12]} has {there} bytes, not {size}.", code="broken_blob", given=size, legal=there)
    execute(
        session,
        "INSERT OR IGNORE INTO blob (digest, bytes, kind, created) VALUES (?, ?, ?, ?)",
        (digest, there, kind, now()),
    )
    execute(
        session,
        "INSERT OR IGNORE INTO artifact_reference (digest, owner_kind, owner, role) VALUES (?, ?, ?, ?)",
        (digest, owner_kind, owner, role),
    )


def drop_references(session: Session, owner_kind: str, owner: str) -> None:
    """Forget all that an owner needs; `sweep` then frees what nobody else needs."""
    execute(session, "DELETE FROM artifact_reference WHERE owner_kind=? AND owner=?", (owner_kind, owner))


def sweep(store: Store, *, strays_older_than_s: float = GRACE_S) -> int:
    """Delete blobs that nobody needs any more, strays that never got an owner, and left-over partials: bytes freed.

    Strays are spared for an hour: a running job writes its files before the transaction that names them.
    """
    freed = 0
    with store.write() as session:
        unused = [
            row[0]
            for row in execute(
                session,
                "SELECT digest FROM blob b WHERE NOT EXISTS (SELECT 1 FROM artifact_reference r WHERE r.digest=b.digest)",
            )
        ]
        for digest in unused:
            execute(session, "DELETE FROM blob WHERE digest=?", (digest,))
    # The rows went first: a crash here leaves strays, which the next sweep takes, and never a row without its file.
    with store.write() as session:
        known = {row[0] for row in execute(session, "SELECT digest FROM blob")}
        for digest in unused:
            if digest not in known:
                freed += store.blobs.remove(digest)
        for digest in list(store.blobs.digests()):
            if digest not in known and time.time() - store.blobs.path(digest).stat().st_mtime > strays_older_than_s:
                freed += store.blobs.remove(digest)
    return freed + store.blobs.remove_partials(older_than_s=max(strays_older_than_s, 24 * 3600.0))
