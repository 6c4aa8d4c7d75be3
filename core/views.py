"""What pages read of a model besides its figures: pictures, curves, histograms, ancestry. No torch."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import store as st
import store.jobs as jobs
from core.checks import weights_path
from core.compare import METRICS
from core.kept_plans import spec_of_choice
from core.settings import Settings
from core.specs import SPECS
from dcaecore import read_header
from dcaecore.sparse import unpack_mask, unpack_values
from store import ModelRow, Store


def plain(value: Any) -> str:
    """A setting as text: lists and tables without their Python quotes."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {plain(part)}" for key, part in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(plain(part) for part in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


class Views:
    """The reading half of `ModelManager`."""

    store: Store
    settings: Settings

    def ancestry(self, ref: str) -> list[ModelRow]:
        """A model's chain from its baseline down to itself."""
        chain = [st.get_model(self.store, ref)]
        while chain[-1].parent_id is not None:
            chain.append(st.get_model(self.store, chain[-1].parent_id, deleted=True))
        return chain[::-1]

    def family(self, ref: str, also: list[str]) -> list[str]:
        """Baseline, parent and the model itself (and what else was asked for), each once, that are still there.

        A baseline of which nothing else was asked for is shown beside its newest retrained descendant (else its newest).
        """
        row = st.get_model(self.store, ref)
        wanted = [st.baseline_of(self.store, row.id).id, *([row.parent_id] if row.parent_id else []), *also, row.id]
        if row.parent_id is None and not also:
            below = sorted(st.descendants(self.store, row.id), key=lambda m: (m.kind == "retrained", m.created))
            wanted += [m.id for m in below[-1:]]
        return [found.id for found in st.get_models(self.store, dict.fromkeys(wanted)).values() if found.deleted is None]

    def held_part(self, ref: str, *also: str) -> str:
        """The part that a retraining had better hold: the encoder where only decoders were pruned, for then latents stay as they are.

        `also` are parts that will be pruned besides what a model and its ancestors have lost already.
        """
        parts = {self.pruned_part(row.spec) for row in self.ancestry(ref) if row.kind == "pruned"}
        return "encoder" if parts | {*also} == {"decoder"} else "none"

    def pruned_part(self, spec: Mapping[str, Any]) -> str:
        """`encoder`, `decoder` or `both`: what a pruning is of, or what it was of whose plan is applied again."""
        return str(spec_of_choice(self.store, spec).get("part", "both"))

    def spec_line(self, ref: str) -> str:
        """What made a model, in one line: the operation and the settings that are not defaults."""
        row = st.get_model(self.store, ref, deleted=True)
        spec = dict(row.spec)
        operation = str(spec.pop("operation", row.kind))
        known = SPECS.get(operation)
        standard = _standard(operation)
        told = []
        for key, value in spec.items():
            if known is not None and key in known.model_fields and not known.applies(key, {**standard, **row.spec}):
                continue
            default = standard.get(key)
            if isinstance(value, dict) and isinstance(default, dict) and default:
                told += [f"{key}.{inner} {plain(part)}" for inner, part in value.items() if default.get(inner) != part]
            elif value != default or key in ("method", "rate", "source"):
                told.append(f"{key} {plain(value)}")
        return f"{operation}: " + ", ".join(told)

    def pictures(self, ref: str) -> list[tuple[bytes, bytes]]:
        """(original, reconstruction) as PNG of a model's last evaluation, in the order of the pinned images."""
        found: dict[int, dict[str, bytes]] = {}
        for image in st.scores.images(self.store, st.get_model(self.store, ref).id):
            found.setdefault(image.index, {})[image.kind] = self.store.blobs.read(image.digest)
        return [(p["original"], p["reconstruction"]) for _, p in sorted(found.items()) if len(p) == 2]

    def image_psnr(self, ref: str) -> list[float]:
        """PSNR of each image of the last test evaluation, dB."""
        row = st.scores.image_scores(self.store, st.get_model(self.store, ref).id)
        return [] if row is None else list(row.values.get("psnr_db", []))

    def job_pictures(self, ref: str) -> list[tuple[bytes, bytes, int]]:
        """(original, newest reconstruction, step) as PNG of a running or ended retraining."""
        folder = self.store.job_folder(jobs.get_job(self.store, ref).id) / "images"
        made = sorted(folder.glob("step_*.png")) if folder.exists() else []
        if not made:
            return []
        stem = made[-1].name[:13]
        newest = sorted(folder.glob(f"{stem}_*.png"))
        found = []
        for path in newest:
            original = folder / f"original_{path.stem[-2:]}.png"
            if original.exists():
                found.append((original.read_bytes(), path.read_bytes(), int(stem.removeprefix("step_"))))
        return found

    def baseline_marks(self, ref: str) -> dict[str, float]:
        """The baseline's quality as reference lines of a plot."""
        baseline = st.baseline_of(self.store, ref)
        means = st.scores.scores(self.store, baseline.id)
        return {
            f"baseline {METRICS[key].title}": value
            for key in ("psnr_db", "foreground_psnr_db")
            if (value := means.get(key)) is not None
        }

    def weight_histogram(self, ref: str, bins: int = 80) -> tuple[list[float], list[int], int]:
        """(bin edges, counts, exact zeros) over all prunable weights."""
        return _histogram(str(weights_path(self.store, st.get_model(self.store, ref))), bins)

    def evaluation_for(self, ref: str) -> dict[str, Any]:
        """Evaluation settings that fit a model: those of its family's last evaluation, or the images of a later retraining."""
        baseline = st.baseline_of(self.store, ref).id
        for job in jobs.list_jobs(self.store, ("done",), 200, operations=("evaluate", "retrain")):
            subject = job.parent_model_id
            if subject is None or st.baseline_of(self.store, subject).id != baseline:
                continue
            return dict(job.spec) if job.operation == "evaluate" else {key: job.spec[key] for key in ("data", "image_size")}
        return {"image_size": self.settings.preset_image_size}


@lru_cache(maxsize=64)
def _standard(operation: str) -> dict[str, Any]:
    """The defaults of an operation's settings; empty for one that is not known."""
    known = SPECS.get(operation)
    return known().model_dump(mode="json") if known else {}


@lru_cache(maxsize=32)
def _histogram(path: str, bins: int) -> tuple[list[float], list[int], int]:
    from safetensors import safe_open

    values, pruned = [], 0
    header = read_header(Path(path))
    listed = header["masks"] if header["format"] > 1 else {}  # files of format 1 keep their zeros
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if ":" not in name and name.endswith(".weight")]  # noqa: SIM118 - not a mapping
        values += [file.get_tensor(name).reshape(-1) for name in names if len(file.get_slice(name).get_shape()) >= 2]
        for name, (dtype, shape) in listed.items():
            if not name.endswith(".weight") or len(shape) < 2:
                continue  # masked biases and norms of whole units are no prunable weights
            kept = int(unpack_mask(file.get_tensor(f"mask:{name}"), shape).sum())
            values.append(unpack_values(file.get_tensor(f"values:{name}"), kept, np.dtype(dtype)))
            pruned += math.prod(shape) - kept
    flat = np.concatenate(values)
    alive = flat[flat != 0]
    counts, edges = np.histogram(alive, bins=bins)
    return edges.tolist(), counts.tolist(), pruned + int(len(flat) - len(alive))


def blank_like(picture: bytes) -> bytes:
    """A transparent PNG of a picture's size, for a place where there is none."""
    with Image.open(io.BytesIO(picture)) as opened:
        size = opened.size
    buffer = io.BytesIO()
    Image.new("LA", size).save(buffer, "PNG")
    return buffer.getvalue()


def png_difference(first: bytes, second: bytes, gain: int = 4) -> bytes:
    """Absolute difference of two PNGs of one size, times `gain`, as PNG."""
    a, b = (np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), dtype=np.int16) for raw in (first, second))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.abs(a - b) * gain, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
