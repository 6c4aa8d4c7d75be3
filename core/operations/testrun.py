"""Test run: the figures of an evaluation, on any images, under a split and a protocol of their own: never among the pinned ones."""

from __future__ import annotations

import numpy as np

from core.augmentations import source_of
from core.operations.context import Context, Outcome
from core.operations.evaluate import judged, subject_of
from core.operations.images import Part, open_parts
from core.specs import DataRunSpec
from dcaecore import DataError, ImageCache, open_frames, pin
from store.scores import RUN


def run(spec: DataRunSpec, context: Context) -> Outcome:
    """Scores the job's model on all of the data or one part of it.

    Raises DataError where there is no image, or a broken one that is not to be skipped.
    """
    subject = subject_of(context, spec.image_size)
    if spec.part == "all":
        part = _whole(spec, context)
    else:
        (part,) = open_parts(spec.data, spec.image_size, context, spec.part)
    pinned = pin(part.cache, part.rows, spec.num_images, skip_broken=spec.data.skip_broken)
    return judged(spec, context, subject, pinned, RUN, {"run": spec.part})


def _whole(spec: DataRunSpec, context: Context) -> Part:
    """Every row that is not denied: three images are too few to split, and enough to look at."""
    context.progress(0.0, "opening images", force=True)
    frames = open_frames(source_of(spec.data), cache_folder=context.settings.data_folder)
    unknown = sorted({*spec.data.deny_rows} - {*frames.row_ids})
    if unknown:
        raise DataError(f"The deny-list names a row that is not there: {unknown[0]}", given=unknown[:5])
    denied = {*spec.data.deny_rows}
    rows = np.array([index for index, name in enumerate(frames.row_ids) if name not in denied], dtype=np.int64)
    return Part(ImageCache(frames, spec.image_size), rows)
