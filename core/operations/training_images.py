"""What a training sees: its batches, out of one data set or several, and the images that it validates on, with their slices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.augmentations import augment_of
from core.inspection import ImageTable
from core.operations.images import Part, Place, open_parts
from core.specs import RetrainSpec
from dcaecore import (
    BatchStream,
    DataError,
    ImageCache,
    JoinedFrames,
    MixedOrder,
    Order,
    PinnedImages,
    RowOrder,
    World,
    joined_pinned,
    pin,
)
from dcaecore.contrast import drawn_by, rms_contrast, slice_rows

SLICED = ("psnr_db", "loss")


@dataclass(frozen=True)
class TrainingImages:
    """The training rows, a rank's share of the batches, the pinned images, and by name the places of each slice of these."""

    part: Part
    stream: BatchStream
    pinned: PinnedImages
    slices: Mapping[str, np.ndarray]


def training_images(spec: RetrainSpec, place: Place, world: World, losses: bytes | None = None) -> TrainingImages:
    """Opens a training's images; `losses` is the table of an inspection. Raises DataError for what cannot be read."""
    sets = [
        open_parts(data, spec.image_size, place, "train", "validation", resize_method=spec.resize_method)
        for data in spec.data_sets
    ]
    part, starts = _joined([trained for trained, _ in sets], spec)
    share = [len(spots) for spots in np.array_split(np.arange(spec.val_steps), len(sets))]
    pins = [
        pin(held.cache, held.rows, max(1, count), skip_broken=spec.data.skip_broken)
        for (_, held), count in zip(sets, share, strict=True)
    ]
    pinned = pins[0] if len(pins) == 1 else joined_pinned(pins)
    place.log("info", f"Validating on {len(pinned)} images.")
    if pinned.foreground_reason:
        place.log("info", f"No foreground figures: {pinned.foreground_reason}.")
    weights = _row_weights(spec, part, place, losses)
    rows = [trained.rows + start for (trained, _), start in zip(sets, starts, strict=True)]
    edges = np.cumsum([0, *map(len, rows)])
    orders = [
        RowOrder(own, spec.seed + number, None if weights is None else weights[edges[number] : edges[number + 1]])
        for number, own in enumerate(rows)
    ]
    order: Order = orders[0]
    if len(orders) > 1:
        order = MixedOrder(
            orders, spec.data_weights or tuple(float(len(own)) for own in rows), spec.data_weights_end or None,
            batch_size=spec.batch_size, total_steps=spec.total_steps, temperature=spec.data_temperature, seed=spec.seed,
        )  # fmt: skip
        first, last = (
            ", ".join(f"{value:.3g}" for value in order.shares_at(np.array([step]))[0]) for step in (0, spec.total_steps - 1)
        )
        place.log("info", f"Shares of the {len(orders)} data sets in a batch: {first} at first, {last} at the last step.")
    stream = BatchStream(
        part.cache,
        part.rows,
        batch_size=spec.batch_size,
        seed=spec.seed,
        num_workers=spec.num_workers,
        skip_broken=spec.data.skip_broken,
        with_foreground=spec.foreground_weight != 1.0,
        rank=world.rank,
        world_size=world.size,
        parts=spec.accumulation_steps,
        augment=augment_of(spec),
        order=order,
    )
    if stream.with_foreground and part.frames.episodes is None:
        place.log("warning", "The images have no episodes, so nothing tells what moves: foreground_weight has no effect.")
    return TrainingImages(part, stream, pinned, _slices(pinned, [len(one) for one in pins]))


def shared_images(spec: RetrainSpec, place: Place, world: World, losses: bytes | None = None) -> TrainingImages:
    """The same on every rank of a world, which must read the same images; raises DataError where they do not."""
    images = world.first(lambda: training_images(spec, place, world, losses))
    if world.size > 1:
        if len(world.union({_glimpse(images.part)})) > 1:
            raise DataError(
                "The machines that train together do not read the same images.", code="data_differs",
                given=[data.location for data in spec.data_sets], next="Copy the data set, so that each machine has the same files.",
            )  # fmt: skip
    return images


def _glimpse(part: Part, rows: int = 64) -> str:
    """Tells one data set from another: a digest of how many training rows there are, and of some of them."""
    digest = hashlib.sha256(",".join(map(str, part.rows)).encode())
    for row in part.rows[np.unique(np.linspace(0, len(part.rows) - 1, rows).astype(int))]:
        try:
            digest.update(part.cache.row(int(row))[0].tobytes())
        except DataError as error:  # a broken row is told where it is drawn; it must be broken everywhere
            digest.update(error.message.encode())
    return digest.hexdigest()


def slice_figures(per_image: Mapping[str, np.ndarray], slices: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over the slices, by `<figure>.<slice>`."""
    return {
        f"{figure}.{name}": float(per_image[figure][places].mean())
        for name, places in slices.items()
        for figure in SLICED
        if figure in per_image
    }


def _joined(parts: list[Part], spec: RetrainSpec) -> tuple[Part, list[int]]:
    """The sets as one part, and the first row of each."""
    if len(parts) == 1:
        return parts[0], [0]
    frames = JoinedFrames([part.cache.frames for part in parts])  # type: ignore[misc]
    rows = np.concatenate([part.rows + start for part, start in zip(parts, frames.starts, strict=False)])
    cache = ImageCache(frames, spec.image_size, resize_method=spec.resize_method)
    return Part(cache, rows), [int(start) for start in frames.starts[:-1]]


def _row_weights(spec: RetrainSpec, part: Part, place: Place, losses: bytes | None) -> np.ndarray | None:
    """How often each training row is drawn beside the others of its set, `(N,)`; None: alike. Raises DataError for an unknown row."""
    ids = [part.frames.row_ids[int(row)] for row in part.rows]
    weights = np.ones(len(ids))
    if spec.draw_by == "contrast":
        weights = drawn_by(_contrasts(spec, part), spec.draw_power)
    elif spec.draw_by == "loss":
        assert losses is not None
        table = ImageTable.from_json(json.loads(losses))
        errors = dict(zip(table.row_ids, 10.0 ** (-np.array(table.psnr_db) / 10.0), strict=True))
        mean = float(np.mean(list(errors.values())))
        unseen = sum(name not in errors for name in ids)
        if unseen:
            place.log("warning", f"{unseen} of {len(ids)} training images were not inspected: they count as the mean.")
        weights = drawn_by(np.array([errors.get(name, mean) for name in ids]), spec.draw_power)
    if spec.row_weights:
        wanted = dict(spec.row_weights)
        unknown = sorted(wanted.keys() - set(part.frames.row_ids))
        if unknown:
            raise DataError(f"row_weights names a row that is not there: {unknown[0]}", code="row", given=unknown[:5])
        idle = sorted(wanted.keys() - set(ids))
        if idle:
            place.log(
                "warning",
                f"{len(idle)} rows of row_weights are no training images, so their weights have no effect: {idle[0]}, ...",
            )
        weights = weights * np.array([wanted.get(name, 1.0) for name in ids])
    return None if (weights == 1.0).all() else weights


def _contrasts(spec: RetrainSpec, part: Part) -> np.ndarray:
    """RMS contrast of each training row; a broken row that is skipped has the mean of the others."""
    found = np.full(len(part.rows), np.nan)
    for number, row in enumerate(part.rows):
        try:
            image, (top, bottom, left, right) = part.cache.row(int(row))
        except DataError:
            if not spec.data.skip_broken:
                raise
            continue
        content = np.zeros(image.shape[:2], dtype=bool)
        content[top:bottom, left:right] = True
        found[number] = rms_contrast(image, content)
    return np.where(np.isnan(found), np.nanmean(found), found)


def _slices(pinned: PinnedImages, counts: list[int]) -> dict[str, np.ndarray]:
    """Thirds by contrast, and the sets where there are several."""
    contrasts = np.array([rms_contrast(image, content) for image, content in zip(pinned.images, pinned.content, strict=True)])
    found = {f"contrast_{name}": places for name, places in slice_rows(contrasts).items()}
    if len(counts) > 1:
        edges = np.cumsum([0, *counts])
        found |= {f"set_{number}": np.arange(edges[number - 1], edges[number]) for number in range(1, len(edges))}
    return found
