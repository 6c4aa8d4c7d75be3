"""Inspect: every image of a part of a data set, one by one. Nothing is kept of an image but its figures and a thumbnail."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

from core.errors import CoreError
from core.inspection import ImageTable, near_duplicates
from core.operations.context import Context, Outcome
from core.operations.images import Part, open_parts
from core.operations.models import load
from core.specs import InspectSpec
from dcaecore import DataError, to_uint8
from dcaecore.metrics import psnr_db
from dcaecore.pinned import to_tensor
from store import get_model

THUMBNAIL = 32


def run(spec: InspectSpec, context: Context) -> Outcome:
    """PSNR of the model and of its parent on each image, and near-duplicates; broken images are named."""
    if context.job.parent_model_id is None:
        raise CoreError("An inspection needs a model.", code="no_parent")
    subject = load(context.store, context.job.parent_model_id, context.device)
    models = [subject.model.eval()]
    if subject.row.parent_id is not None:
        parent = get_model(context.store, subject.row.parent_id, deleted=True)
        if parent.deleted is None:
            models.append(load(context.store, parent.id, context.device).model.eval())
    (part,) = open_parts(spec.data, spec.image_size, context, spec.part)
    rows = part.rows[: spec.max_images]
    figures: list[list[float]] = [[] for _ in models]
    row_ids, thumbnails, broken = list[str](), list[np.ndarray](), list[str]()
    for start in range(0, len(rows), spec.batch_size):
        context.check()
        context.progress(start / len(rows), f"image {start} of {len(rows)}")
        read = _read(part, rows[start : start + spec.batch_size], spec.image_size, row_ids, broken)
        if read is None:
            continue
        images, content = read
        x = to_tensor(images).to(context.device)
        with torch.inference_mode():
            for model, found in zip(models, figures, strict=True):
                found += psnr_db(to_uint8(model(x)), images, content).tolist()
        thumbnails += [_thumbnail(image) for image in images]
    if not row_ids:
        raise DataError("Every image is broken.", code="no_data", given=len(rows))
    earlier = near_duplicates(np.stack(thumbnails))
    same = tuple(row_ids[place] if place >= 0 else "" for place in earlier)
    parents = tuple(figures[1]) if len(models) > 1 else None
    table = ImageTable(tuple(row_ids), tuple(figures[0]), parents, same, tuple(broken), spec.data.model_dump(mode="json"))
    digest = context.store.blobs.put_bytes(json.dumps(table.to_json(), sort_keys=True).encode())
    worst = row_ids[int(np.argmin(figures[0]))]
    context.log("info", f"{len(row_ids)} images, worst {worst}, {sum(map(bool, same))} near-duplicates, {len(broken)} broken.")
    return Outcome(result={"table_digest": digest, "num_images": len(row_ids), "worst": worst, "broken": broken})


def _read(part: Part, rows: np.ndarray, size: int, row_ids: list[str], broken: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """uint8 `(n, S, S, 3)` and bool content `(n, S, S)` of the rows that can be read; their ids go to `row_ids`."""
    images, contents = [], []
    for row in rows:
        name = part.frames.row_ids[int(row)]
        try:
            image, (top, bottom, left, right) = part.cache.row(int(row))
        except DataError:
            broken.append(name)
            continue
        content = np.zeros((size, size), dtype=bool)
        content[top:bottom, left:right] = True
        images.append(image)
        contents.append(content)
        row_ids.append(name)
    return (np.stack(images), np.stack(contents)) if images else None


def _thumbnail(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).reshape(-1)
