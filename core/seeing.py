"""Pictures of a comparison: which image got worse, and two reconstructions in one. PNG in, PNG out; no torch."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

import store.jobs as jobs
import store.scores as scores
from core.compare import Comparison
from core.errors import CoreError
from store import JobRow, Store


@dataclass(frozen=True)
class ImageLine:
    """One pinned image: blob digests of its original and of each model's reconstruction, and each model's PSNR in dB."""

    index: int
    original: str
    made: dict[str, str]
    psnr_db: dict[str, float]
    regression_db: float | None
    """The most that any model loses against the reference (negative: a loss); None where there is nothing to compare."""


def image_lines(store: Store, comparison: Comparison, reference: str, *, by_loss: bool = True) -> list[ImageLine]:
    """The images of the comparison's protocol that have pictures, those that lose most first, else in their order.

    Models that were last evaluated on other images, or never, are left out of a line: another protocol's image 3 is another image.
    """
    if comparison.protocol is None:
        return []
    number = scores.protocol_id(comparison.protocol)
    pictures: dict[str, dict[tuple[str, int], str]] = {}
    psnr: dict[str, list[float]] = {}
    for model in comparison.models:
        pictures[model.id] = {(i.kind, i.index): i.digest for i in scores.images(store, model.id, protocol_id=number)}
        row = scores.image_scores(store, model.id, comparison.split, protocol_id=number)
        if row is not None:
            psnr[model.id] = row.values.get("psnr_db", [])
    originals: dict[int, str] = {}
    for own in pictures.values():
        for (kind, index), digest in own.items():
            if kind == "original":
                originals.setdefault(index, digest)
    lines = []
    for index, original in sorted(originals.items()):
        made = {ref: own["reconstruction", index] for ref, own in pictures.items() if ("reconstruction", index) in own}
        figures = {ref: values[index] for ref, values in psnr.items() if index < len(values)}
        others = [value for ref, value in figures.items() if ref != reference]
        loss = min(others) - figures[reference] if others and reference in figures else None
        lines.append(ImageLine(index, original, made, figures, loss))
    return sorted(lines, key=lambda line: (line.regression_db or 0.0, line.index)) if by_loss else lines


@dataclass(frozen=True)
class Reconstruction:
    """A picture as the models saw it, and each model's id, PSNR over its content, reconstruction and latent channels (PNG)."""

    original: bytes
    models: tuple[tuple[str, float, bytes, bytes], ...]


def reconstruction(store: Store, job: str) -> Reconstruction | None:
    """What a reconstruct job made; None while it is not done. Raises CoreError for another kind of job, or one that failed."""
    row: JobRow = jobs.get_job(store, job)
    if row.operation != "reconstruct":
        raise CoreError(f"{row.name} reconstructs nothing.", code="no_reconstruction", given=row.id, legal="a job of reconstruct")
    if row.state in ("failed", "cancelled"):
        error = row.error or {}
        raise CoreError(error.get("message") or f"The reconstruction was {row.state}.", code=error.get("code", row.state))
    if row.state != "done":
        return None
    found = row.result
    made = tuple(
        (
            one["model_id"],
            float(one["psnr_db"]),
            store.blobs.read(found[f"made_{n}_digest"]),
            store.blobs.read(found[f"latent_{n}_digest"]),
        )
        for n, one in enumerate(found["models"])
    )
    return Reconstruction(store.blobs.read(found["input_digest"]), made)


def _pixels(png: bytes) -> np.ndarray:
    """uint8 `(H, W, 3)`."""
    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("RGB"))


def _png(picture: Image.Image) -> bytes:
    """Made while somebody waits and sent once: quick rather than small."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def split_picture(left: bytes, right: bytes, share: float) -> bytes:
    """`left` up to `share` of the width, `right` beyond it, with a line between; PNG.

    Raises CoreError for pictures of two sizes or a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise CoreError("A share lies between 0 and 1.", code="share", given=share, legal="0 to 1")
    a, b = _pixels(left), _pixels(right)
    if a.shape != b.shape:
        sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (a, b)]
        raise CoreError(
            "Two pictures of different sizes cannot be laid over each other.", code="sizes", given=sizes, legal="one size"
        )
    at = round(share * a.shape[1])
    made = np.concatenate([a[:, :at], b[:, at:]], axis=1)
    if 0 < at < a.shape[1]:
        made[:, at] = (255, 255, 255)
    return _png(Image.fromarray(made))


def zoomed(png: bytes, zoom: int, across: float = 0.5, down: float = 0.5, *, side: int = 512) -> bytes:
    """A part of a picture, `1 / zoom` of its sides, around (`across`, `down`) of it, drawn `side` px wide with hard pixels; PNG."""
    if zoom < 1 or not (0 <= across <= 1 and 0 <= down <= 1):
        raise CoreError("A zoom is 1 or more, and its centre lies in the picture.", code="zoom", given=[zoom, across, down])
    pixels = _pixels(png)
    height, width = (max(1, length // zoom) for length in pixels.shape[:2])
    top, left = round(down * (pixels.shape[0] - height)), round(across * (pixels.shape[1] - width))
    part = Image.fromarray(pixels[top : top + height, left : left + width])
    times = max(1, side // width)
    return _png(part.resize((width * times, height * times), Image.Resampling.NEAREST))
