"""Infer: every image of a data set through a model, into a folder: pictures, `results.csv`, `run.json`, latents on request.

The folder appears whole or not at all: work goes on in a neighbour of it with a name of its own, which is renamed at the end. A line of
its journal is written once an image's files are there, so a job that was paused or killed goes on behind the last whole batch, and one
that was cancelled, or that met a broken image, leaves nothing.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.augmentations import source_of
from core.errors import CoreError
from core.inference import COLUMNS, JOURNAL, SUMMARY, TABLE
from core.operations.context import Cancelled, Context, Outcome
from core.operations.evaluate import subject_of
from core.operations.models import Loaded
from core.specs import InferSpec
from dcaecore import DataError, Frames, PinnedImages, open_frames, perceptual_scores, to_uint8
from dcaecore.images import to_square
from dcaecore.metrics import score_images
from dcaecore.pinned import to_tensor


def run(spec: InferSpec, context: Context) -> Outcome:
    """Reconstructs images in batches. Raises CoreError where the folder is there already, DataError for data that cannot be read."""
    subject = subject_of(context, spec.image_size)
    out = Path(spec.out) if spec.out else context.folder / "results"
    if (out / SUMMARY).exists() and json.loads((out / SUMMARY).read_text())["job"] == context.job.id:
        return _outcome(out)  # killed between the renaming and the end of the job
    if out.exists():
        raise CoreError(f"{out} is there already.", code="exists", given=str(out), next="Choose another folder.")
    work = out.with_name(f".{out.name}.partial-{context.job.id[2:]}")
    work.mkdir(parents=True, exist_ok=True)
    try:
        lines = _reconstructed(spec, context, subject, work)
    except (Cancelled, DataError):  # a resume would end in the same error: nothing is left for it
        shutil.rmtree(work)
        raise
    _finish(spec, context, subject, work, lines)
    os.rename(work, out)
    return _outcome(out)


def _outcome(out: Path) -> Outcome:
    summary = json.loads((out / SUMMARY).read_text())
    return Outcome(result={"out": str(out), **{key: summary[key] for key in ("num_images", "num_broken", "means")}})


def _reconstructed(spec: InferSpec, context: Context, subject: Loaded, work: Path) -> list[dict[str, Any]]:
    """A line of the table for each image, in the order of the data; those of an earlier attempt are read, not made again."""
    context.progress(0.0, "opening images", force=True)
    frames = open_frames(source_of(spec.data), cache_folder=context.settings.data_folder)
    denied = {*spec.data.deny_rows}
    names = [name for name in frames.row_ids if name not in denied][: spec.max_images]
    if not names:
        raise DataError("There are no images.", code="no_data", given=spec.data.location)
    outputs, place = output_names(names), {name: index for index, name in enumerate(frames.row_ids)}
    done = _journal(work / JOURNAL)
    left = [name for name in names if name not in done]
    if done:
        context.log("info", f"{len(done)} of {len(names)} images are there from before.")
    with (work / JOURNAL).open("a") as journal:
        for start in range(0, len(left), spec.batch_size):
            context.check()
            context.progress(len(done) / len(names), f"image {len(done)} of {len(names)}")
            batch = left[start : start + spec.batch_size]
            for line in _batch(
                spec, subject, frames, [(name, place[name], outputs[name]) for name in batch], work, context.device
            ):
                done[line["file"]] = line
                journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
    return [done[name] for name in names]


def output_names(row_ids: list[str]) -> dict[str, str]:
    """Where each row's picture goes: its name with `.png`, or behind its whole name where two would be one (a.jpg and a.png)."""
    plain = {name: str(PurePosixPath(name).with_suffix(".png")) for name in row_ids}
    count = Counter(plain.values())
    return {name: short if count[short] == 1 else f"{name}.png" for name, short in plain.items()}


def _journal(path: Path) -> dict[str, dict[str, Any]]:
    """Lines by row id; the last one may be half-written."""
    found = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found[line["file"]] = line
    if path.exists():
        path.write_text("".join(json.dumps(line) + "\n" for line in found.values()))
    return found


@torch.inference_mode()
def _batch(
    spec: InferSpec, subject: Loaded, frames: Frames, rows: list[tuple[str, int, str]], work: Path, device: str
) -> list[dict[str, Any]]:
    """Lines of some (row id, index, picture) rows, in their order; their files are written."""
    lines: dict[str, dict[str, Any]] = {}
    images, boxes, taken = list[np.ndarray](), list[tuple[int, int, int, int]](), list[tuple[str, str, tuple[int, int]]]()
    for name, index, output in rows:
        try:
            picture = frames.image(index)
        except DataError as error:
            if not spec.data.skip_broken:
                raise
            lines[name] = {"file": name, "error": error.message}
            continue
        image, box = to_square(picture, spec.image_size)
        images.append(image)
        boxes.append(box)
        taken.append((name, output, picture.size))
    if images:
        stacked = np.stack(images)
        content = np.zeros(stacked.shape[:3], dtype=bool)
        for mask, (top, bottom, left, right) in zip(content, boxes, strict=True):
            mask[top:bottom, left:right] = True
        dtype = torch.bfloat16 if spec.dtype == "bfloat16" else None
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None):
            z = subject.model.encode(to_tensor(stacked).to(device))
            made = to_uint8(subject.model.decode(z))
        pinned = PinnedImages(stacked, content, None, "", None, tuple(name for name, _, _ in taken), (), "")
        figures = {**score_images(made, pinned), **perceptual_scores(made, stacked, content)}
        for at, (name, output, size) in enumerate(taken):
            _write(work / "images" / output, _png(made[at], boxes[at], size if spec.size == "original" else None))
            line: dict[str, Any] = {"file": name, "output": f"images/{output}", "width": size[0], "height": size[1]}
            if spec.save_latents:
                buffer = io.BytesIO()
                np.save(buffer, z[at].float().cpu().numpy())
                latent = str(PurePosixPath("latents") / PurePosixPath(output).with_suffix(".npy"))
                _write(work / latent, buffer.getvalue())
                line["latent"] = latent
            # An empty cell, not NaN, where an image has no such figure.
            line |= {key: float(values[at]) for key, values in figures.items() if np.isfinite(values[at])}
            lines[name] = line
    return [lines[name] for name, _, _ in rows]


def _png(square: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int] | None) -> bytes:
    """uint8 `(S, S, 3)` as PNG: whole, or its content alone at `size` (width, height)."""
    picture = Image.fromarray(square)
    if size is not None:
        top, bottom, left, right = box
        picture = picture.crop((left, top, right, bottom)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _finish(spec: InferSpec, context: Context, subject: Loaded, work: Path, lines: list[dict[str, Any]]) -> None:
    """The table and the summary; the journal goes."""
    used = [column for column in COLUMNS if any(column in line for line in lines)]
    with (work / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, used)
        writer.writeheader()
        writer.writerows(lines)
    means = {
        key: float(np.mean(values))
        for key in COLUMNS
        if (values := [line[key] for line in lines if isinstance(line.get(key), float)])
    }
    broken = [line["file"] for line in lines if "error" in line]
    summary = {
        "job": context.job.id,
        "model": {"id": subject.row.id, "name": subject.row.name},
        "spec": spec.model_dump(mode="json"),
        "num_images": len(lines) - len(broken),
        "num_broken": len(broken),
        "means": means,
    }
    (work / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    (work / JOURNAL).unlink()
    context.log(
        "info", f"{len(lines) - len(broken)} images, {len(broken)} broken; " + ", ".join(f"{k} {v:.4g}" for k, v in means.items())
    )
