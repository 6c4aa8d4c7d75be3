"""One model from a store into another, with its identity as it was hashed; the file is linked where the disk allows."""

from __future__ import annotations

import json
import os

from store.ancestry import NewModel, add_model
from store.blobs import fsync_folder
from store.db import Store
from store.errors import StoreError
from store.model_rows import ModelRow, get_model


def copy_model(source: Store, target: Store, ref: str) -> ModelRow:
    """Brings a model with weights into another store, which must hold its parents; figures, tags and jobs stay behind.

    Raises StoreError: missing_blob (its weights are gone), unknown_model (a parent is not in the target).
    """
    row = get_model(source, ref, deleted=True)
    if row.blob_digest is None:
        raise StoreError(
            f"The weights of {row.name} ({row.id}) were cleaned away.",
            code="missing_blob",
            given=row.id,
            legal="a model whose weights are in the store",
        )
    ((canonical,),) = source.rows("SELECT canonical FROM model_text WHERE model=?", (row.id,))
    made = add_model(
        target,
        NewModel(
            name=row.name,
            kind=row.kind,
            family=row.family,
            config=row.config,
            layout=row.layout,
            spec=row.spec,
            weights_digest=row.weights_digest,
            blob_digest=link_blob(source, target, row.blob_digest),
            bytes=row.bytes,
            parents=row.parents,
            dataset_identity=row.dataset,
            facts=row.facts,
            spec_version=int(json.loads(canonical)["spec_version"]),
        ),
    )
    assert made.id == row.id, "an identity is hashed from what was copied"
    return made


def link_blob(source: Store, target: Store, digest: str) -> str:
    """A blob of one store in another: a hard link, or a copy where the two lie on different disks. Returns its digest."""
    target_path = target.blobs.path(digest)
    if target.blobs.exists(digest):
        return digest
    source.blobs.size(digest)  # raises where it is missing
    target_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.blobs.path(digest), target_path)
        fsync_folder(target_path.parent)
    except OSError:
        return target.blobs.put_file(source.blobs.path(digest))
    return digest
