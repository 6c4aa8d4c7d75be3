"""Export: a model written for use elsewhere, checked against the model on pinned images, and timed beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import CoreError
from core.exporting import graphs
from core.exporting.files import write_weights
from core.exporting.programs import Call, module_calls, onnx_call, openvino_call, torch_call, weights_calls
from core.exporting.snippets import snippet
from core.exporting.tools import check_tools
from core.operations.clock import device_name, seconds
from core.operations.context import Context, Outcome
from core.operations.images import open_parts
from core.operations.models import Loaded, load
from core.specs import ExportSpec
from dcaecore import PinnedImages, pin, to_uint8
from dcaecore.metrics import psnr_db

LEAST_PSNR_DB = {"float32": 60.0, "float16": 40.0, "bfloat16": 28.0, "int8": 25.0}
"""Between the export's 8-bit reconstructions and the model's in float32: what lies below is not offered as good. 60 dB is one pixel in
fifteen a step of 1/255 off; half precision and 8-bit convolutions are as far off as their arithmetic makes them."""
MOST_ERROR = 1e-3
"""Of a float32 graph's images and latents, relative to the largest value."""
ENDINGS = {"onnx": "onnx", "openvino": "xml", "torch_export": "pt2"}
RUNTIMES = {"onnx": "onnxruntime", "openvino": "OpenVINO"}
"""Of all others: torch."""


@dataclass
class Written:
    """An export on the disk: its files, and how each half of it is called."""

    files: list[Path]
    calls: dict[str, Call]


def run(spec: ExportSpec, context: Context) -> Outcome:
    """Writes, checks, times; the result holds files (by digest), check, benchmark, verdict and snippet.

    Raises CoreError for a missing tool, or a shape that the format cannot hold.
    """
    if context.job.parent_model_id is None:
        raise CoreError("An export needs a model.", code="no_parent")
    check_tools(spec.format)
    subject = load(context.store, context.job.parent_model_id)
    subject.model.eval().requires_grad_(False)
    subject.model.config.check_image_size(spec.image_size, spec.image_size)
    validation, test = open_parts(spec.data, spec.image_size, context, "validation", "test")
    pinned = pin(test.cache, test.rows, spec.num_images, skip_broken=spec.data.skip_broken)
    calibration = None
    if spec.quantize == "int8":
        calibration = pin(validation.cache, validation.rows, spec.calibration_images, skip_broken=spec.data.skip_broken)
    context.progress(0.1, "writing", force=True)
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        written = _write(spec, context, subject, calibration, Path(folder))
        context.check()
        context.progress(0.5, "checking", force=True)
        model = module_calls(subject.model, torch.float32)
        check = _check(spec, context, written.calls, model, pinned, subject.model.config.spatial_compression)
        context.progress(0.7, "timing", force=True)
        timed = _timed(spec, context, written.calls, model, pinned)
        reasons = _reasons(spec, check)
        text = snippet(
            spec.format, side=spec.image_size, dtype=spec.dtype, processing=spec.processing, part=spec.part, batch=spec.batch_size,
            dynamic=spec.dynamic,
        )  # fmt: skip
        files, digests = [], {}
        for path in written.files:
            size, digest = path.stat().st_size, context.store.blobs.put_file(path)
            files.append({"name": path.name, "bytes": size, "digest": digest})
            digests[f"{path.name}_digest"] = digest
    for reason in reasons:
        context.log("warning", reason)
    context.log("info", ", ".join(f"{name} {value}" for name, value in check.items()))
    result = {
        "files": files,
        **digests,
        "check": check,
        "benchmark": timed,
        "good": not reasons,
        "reasons": reasons,
        "snippet": text,
    }
    return Outcome(result=result)


def _write(spec: ExportSpec, context: Context, subject: Loaded, calibration: PinnedImages | None, folder: Path) -> Written:
    dtype = graphs.DTYPES[spec.dtype]
    config = subject.model.config
    if spec.format not in ENDINGS:
        files = write_weights(subject, spec.format, dtype, folder)
        return Written(files, weights_calls(files[0], spec.format, dtype, config))
    parts = ("encoder", "decoder") if spec.part == "both" else (spec.part,)
    # A copy in the graph's precision: the model itself stays what the export is checked against.
    converted = load(context.store, subject.row.id).model.to(dtype).eval().requires_grad_(False)
    threads, written = torch.get_num_threads(), Written([], {})
    for number, part in enumerate(parts):
        context.check()
        context.progress(0.1 + 0.4 * number / len(parts), f"writing the {part}", force=True)
        path = folder / f"{part}.{ENDINGS[spec.format]}"
        program = graphs.program(
            converted, part, dtype=dtype, processing=spec.processing, dynamic=spec.dynamic, batch=spec.batch_size,
            side=spec.image_size,
        )  # fmt: skip
        if spec.format == "torch_export":
            torch.export.save(program, str(path))
            written.calls[part] = torch_call(path)
            written.files.append(path)
            continue
        made = path.with_suffix(".onnx")
        graphs.to_onnx(program, part, made, spec.opset)
        if calibration is not None:
            plain = made.rename(folder / f"float-{made.name}")
            graphs.quantize(plain, made, _calibration(spec, subject, part, calibration))
        if spec.format == "openvino":
            written.files += graphs.to_openvino(made, path)
            written.calls[part] = openvino_call(path, threads)
        else:
            written.files.append(made)
            written.calls[part] = onnx_call(made, threads)
    return written


def _calibration(spec: ExportSpec, subject: Loaded, part: str, pinned: PinnedImages) -> list[np.ndarray]:
    """Batches of the graph's own input: images, or the latents that the model makes of them."""
    encode = module_calls(subject.model, torch.float32)["encoder"]
    batches = []
    for images in _batches(pinned.images, spec.batch_size):
        x = _float(images)
        batches.append((images if spec.processing else x) if part == "encoder" else encode(x))
    return batches


def _batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    """All of one size: the last is filled up with its last image."""
    found = [images[start : start + size] for start in range(0, len(images), size)]
    found[-1] = np.concatenate([found[-1], np.repeat(found[-1][-1:], size - len(found[-1]), axis=0)])
    return found


def _float(images: np.ndarray) -> np.ndarray:
    """uint8 `(B, H, W, 3)` to float32 `(B, 3, H, W)` in [-1, 1]."""
    return np.ascontiguousarray((images.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2))


def _bytes(y: np.ndarray) -> np.ndarray:
    """What a decoder gave, as uint8 `(B, H, W, 3)`."""
    return y if y.dtype == np.uint8 else to_uint8(torch.from_numpy(y.astype(np.float32)))


def _encoded(spec: ExportSpec, calls: Mapping[str, Call], model: Mapping[str, Call], images: np.ndarray) -> np.ndarray:
    """Latents by the exported encoder where there is one, else by the model."""
    if "encoder" not in calls:
        return model["encoder"](_float(images))
    return calls["encoder"](images if spec.processing else _float(images))


def _check(
    spec: ExportSpec, context: Context, calls: Mapping[str, Call], model: Mapping[str, Call], pinned: PinnedImages, step: int
) -> dict[str, float]:
    """How far the export is from the model in float32, on the pinned images; and, where it is dynamic, on another batch and size.

    Latent errors are relative to the largest latent, image errors absolute in [-1, 1]; a graph with processing inside rounds to 8 bits,
    so its images are compared as such.
    """
    ours, theirs, errors = [], [], {"latent": 0.0, "image": 0.0}

    def compared(images: np.ndarray) -> None:
        context.check()
        z = model["encoder"](_float(images))
        found = _encoded(spec, calls, model, images)
        if "encoder" in calls:
            errors["latent"] = max(errors["latent"], float(np.abs(found.astype(np.float32) - z).max() / np.abs(z).max()))
        y = model["decoder"](z)
        if "decoder" in calls:
            own = calls["decoder"](z)
            away = (
                _bytes(own).astype(np.float32) / 127.5 - _bytes(y).astype(np.float32) / 127.5
                if own.dtype == np.uint8
                else own - y
            )
            errors["image"] = max(errors["image"], float(np.abs(away).max()))
        made = calls["decoder"](found) if "decoder" in calls else model["decoder"](found.astype(np.float32))
        ours.append(_bytes(made))
        theirs.append(_bytes(y))

    for images in _batches(pinned.images, spec.batch_size):
        compared(images)
    count = len(pinned)
    export, plain = np.concatenate(ours)[:count], np.concatenate(theirs)[:count]
    between = psnr_db(export, plain, pinned.content)
    found = {
        "num_images": float(count),
        "max_latent_error_ratio": errors["latent"],
        "max_image_error": errors["image"],
        "psnr_to_model_db": float(between.mean()),
        "least_psnr_to_model_db": float(between.min()),
        "psnr_db": float(psnr_db(export, pinned.images, pinned.content).mean()),
        "model_psnr_db": float(psnr_db(plain, pinned.images, pinned.content).mean()),
    }
    if spec.dynamic and spec.format in ENDINGS:
        ours.clear()
        theirs.clear()
        errors.update(latent=0.0, image=0.0)
        wide = np.random.default_rng(0).integers(
            0, 256, (3, spec.image_size + step, spec.image_size + 2 * step, 3), dtype=np.uint8
        )
        compared(wide)
        everywhere = np.ones(wide.shape[:3], dtype=bool)
        found["other_size_psnr_to_model_db"] = float(psnr_db(ours[0], theirs[0], everywhere).min())
    return found


def _reasons(spec: ExportSpec, check: Mapping[str, float]) -> list[str]:
    """Why an export is not good; empty where it is."""
    kind = "int8" if spec.quantize == "int8" else spec.dtype
    least, found = LEAST_PSNR_DB[kind], []
    for name, where in (("psnr_to_model_db", "the pinned images"), ("other_size_psnr_to_model_db", "another batch and size")):
        if name in check and not check[name] >= least:
            found.append(f"On {where} it is {check[name]:.1f} dB from the model, and {least:.0f} dB are asked of {kind}.")
    if kind == "float32" and not spec.processing:
        for name, what in (("max_latent_error_ratio", "latents"), ("max_image_error", "images")):
            if not check[name] <= MOST_ERROR:
                found.append(f"Its {what} are up to {check[name]:.2g} off, and {MOST_ERROR:g} is allowed.")
    return found


def _timed(
    spec: ExportSpec, context: Context, calls: Mapping[str, Call], model: Mapping[str, Call], pinned: PinnedImages
) -> dict[str, Any]:
    """Median and p95 of each half by the export's own runtime and by the model in torch (float32), interleaved, on the CPU."""
    images = _batches(pinned.images, spec.batch_size)[0]
    x, z = _float(images), model["encoder"](_float(images))
    given = {"encoder": images if spec.processing else x, "decoder": z}
    times: dict[tuple[str, str], list[float]] = {(who, part): [] for part in calls for who in ("export", "model")}
    for repeat in range(-2, spec.repeats):
        context.check()
        for part in calls:
            # Turn about, so that neither always follows the other.
            order = [("export", calls[part], given[part]), ("model", model[part], x if part == "encoder" else z)]
            for who, call, value in order if repeat % 2 else order[::-1]:
                taken = seconds(lambda c=call, v=value: c(v), "cpu")  # type: ignore[misc]
                if repeat >= 0:
                    times[who, part].append(taken * 1e3)
    found: dict[str, Any] = {
        "device": "cpu", "device_name": device_name("cpu"), "threads": torch.get_num_threads(), "batch_size": spec.batch_size,
        "image_size": spec.image_size, "repeats": spec.repeats, "runtime": RUNTIMES.get(spec.format, "torch"),
    }  # fmt: skip
    for (who, part), values in times.items():
        name = {"encoder": "encode", "decoder": "decode"}[part]
        found[f"{who}_{name}_ms"] = float(np.median(values))
        found[f"{who}_{name}_p95_ms"] = float(np.percentile(values, 95))
    return found
