"""Evaluate: quality on pinned images, per image and mean, with pictures of the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import CoreError
from core.operations.context import Context, Outcome
from core.operations.images import open_parts
from core.operations.learned import learned_figures
from core.operations.models import Loaded, load
from core.operations.retrain import png
from core.specs import DataRunSpec, EvaluateSpec
from dcaecore import (
    DCAE,
    LEAST_MS_SSIM_SIDE,
    PinnedImages,
    ReconstructionLoss,
    evaluate_images,
    latent_drift,
    means,
    median_scores,
    perceptual_scores,
    pin,
)
from store import NewImage, NewScores, baseline_of

PROTOCOL_VERSION = 1


def run(spec: EvaluateSpec, context: Context) -> Outcome:
    """Scores the job's model; the protocol names the images by their digest, so only like is compared with like."""
    subject = subject_of(context, spec.image_size)
    (part,) = open_parts(spec.data, spec.image_size, context, spec.split)
    pinned = pin(part.cache, part.rows, spec.num_images, skip_broken=spec.data.skip_broken)
    return judged(spec, context, subject, pinned, spec.split, {})


def subject_of(context: Context, image_size: int) -> Loaded:
    """The job's model. Raises CoreError where it names none, ConfigError for images that the model cannot take."""
    if context.job.parent_model_id is None:
        raise CoreError("Evaluating needs a model.", code="no_parent")
    subject = load(context.store, context.job.parent_model_id, context.device)
    subject.model.config.check_image_size(image_size, image_size)
    return subject


def judged(
    spec: EvaluateSpec | DataRunSpec,
    context: Context,
    subject: Loaded,
    pinned: PinnedImages,
    split: str,
    of_protocol: Mapping[str, Any],
) -> Outcome:
    """All figures and pictures of a model on images; `of_protocol` are further fields of the protocol that they stand under."""
    context.progress(0.3, f"{len(pinned)} images", force=True)
    autocast = torch.bfloat16 if spec.dtype == "bfloat16" else None
    loss = ReconstructionLoss("l1").to(context.device)
    reference, drift, done = _reference(context, subject), list[float](), 0

    def reconstruct(x_BCHW: Tensor) -> Tensor:
        nonlocal done
        context.check()
        context.progress(0.3 + 0.6 * done / len(pinned), f"image {done} of {len(pinned)}")
        done += len(x_BCHW)
        z = subject.model.encode(x_BCHW)
        if reference is not None:
            drift.extend(latent_drift(z, reference.encode(x_BCHW)).tolist())
        output: Tensor = subject.model.decode(z)
        return output

    scores = evaluate_images(reconstruct, pinned, batch_size=spec.batch_size, device=context.device, autocast=autocast, loss=loss)
    context.check()
    seen = perceptual_scores(scores.reconstructions, pinned.images, pinned.content)
    learned, of_set, weights = learned_figures(context, scores.reconstructions, pinned)
    found = {**scores.per_image, **seen, **learned, **({"latent_drift": np.array(drift)} if drift else {})}
    averages = {**means(found), **of_set}
    protocol = {
        "version": PROTOCOL_VERSION,
        "images_sha256": pinned.digest,
        "num_images": len(pinned),
        "image_size": spec.image_size,
        "dtype": spec.dtype,
        "source": f"{spec.data.kind}:{spec.data.location}",
        "loss": "l1",
        **({"weights": weights} if weights else {}),
        **of_protocol,
    }
    if "ms_ssim" not in averages:
        context.log("info", f"No MS-SSIM: its coarsest scale needs images of {LEAST_MS_SSIM_SIDE} px.")
    pictures = []
    for index in range(min(spec.num_save_images, len(pinned))):
        pictures.append(NewImage(index, png(pinned.images[index]), "original"))
        pictures.append(NewImage(index, png(scores.reconstructions[index])))
    floor = {f"median_frame_{name}": value for name, value in median_scores(pinned).items()}
    result = {
        **floor,
        "foreground_share": pinned.foreground_share,
        "foreground_reason": pinned.foreground_reason,
        "skipped_rows": list(pinned.skipped),
        "device": context.device,
    }
    context.log("info", ", ".join(f"{name} {value:.4g}" for name, value in averages.items()))
    entry = NewScores(
        protocol=protocol,
        split=split,
        means=averages,
        per_image={name: [float(v) for v in values] for name, values in found.items()},
        row_ids=pinned.row_ids,
        images=pictures,
        model_id=subject.row.id,
    )
    return Outcome(scores=[entry], result=result)


def _reference(context: Context, subject: Loaded) -> DCAE | None:
    """The baseline, whose latents others depend on; None for the baseline itself, or where its weights are gone."""
    baseline = baseline_of(context.store, subject.row.id)
    if baseline.id == subject.row.id:
        return None
    if baseline.deleted or baseline.blob_digest is None or not context.store.blobs.exists(baseline.blob_digest):
        context.log("info", "No latent drift: the baseline's weights are not in the store any more.")
        return None
    return load(context.store, baseline.id, context.device).model
