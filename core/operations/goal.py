"""“As good as that model”: its figure on a training's own validation images is where the training may end."""

from __future__ import annotations

import torch

from core.operations.context import Context
from core.operations.models import load
from core.specs import RetrainSpec
from core.training import goal_row
from dcaecore import PinnedImages, ReconstructionLoss, evaluate_images


def goal_value(spec: RetrainSpec, context: Context, pinned: PinnedImages) -> float | None:
    """Its figure on the pinned images, by the metric that is best by; None where there is no goal."""
    assert context.job.parent_model_id is not None
    row = goal_row(spec, context.store, context.job.parent_model_id)
    if row is None:
        return None
    model = load(context.store, row.id, context.device).model
    autocast = torch.bfloat16 if spec.dtype == "bfloat16" else None
    loss = ReconstructionLoss(
        spec.reconstruction_loss, foreground_weight=spec.foreground_weight, perceptual_weight=spec.perceptual_weight
    ).to(context.device)
    scores = evaluate_images(model, pinned, device=context.device, autocast=autocast, loss=loss, batch_size=8)
    value = scores.means.get(spec.best_metric, scores.means["psnr_db"])
    context.log("info", f"It may end when validation is as good as {row.name}: {spec.best_metric} {value:.4g}.")
    return value
