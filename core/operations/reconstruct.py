"""Reconstruct: one picture through up to four models, with its latent channels as pictures. Interactive: goes before long jobs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.errors import CoreError
from core.operations.context import Context, Outcome
from core.operations.models import load
from core.operations.retrain import png
from core.specs import ReconstructSpec
from dcaecore import to_uint8
from dcaecore.images import to_square
from dcaecore.metrics import psnr_db
from dcaecore.pinned import to_tensor
from store import resolve_model

LATENT_COLUMNS = 8


@torch.inference_mode()
def run(spec: ReconstructSpec, context: Context) -> Outcome:
    """PSNR over the picture's content, the reconstruction and the latents of each model; pictures are named by their digests.

    Raises CoreError where the picture is gone, ConfigError for a size that a model cannot take.
    """
    if context.job.parent_model_id is None:
        raise CoreError("A reconstruction needs a model.", code="no_parent")
    ids = list(dict.fromkeys([context.job.parent_model_id, *(resolve_model(context.store, ref) for ref in spec.models)]))
    if not context.store.blobs.holds(spec.image_digest):
        raise CoreError(
            "The picture is not in the store any more.", code="no_image", given=spec.image_digest, next="Upload it again."
        )
    with Image.open(io.BytesIO(context.store.blobs.read(spec.image_digest))) as opened:
        pixels, (top, bottom, left, right) = to_square(opened, spec.image_size)
    pixels = pixels.copy()  # Pillow's own array is read-only, which torch will not share
    content = np.zeros((1, *pixels.shape[:2]), dtype=bool)
    content[0, top:bottom, left:right] = True
    x = to_tensor(pixels[None]).to(context.device)
    digests = {"input_digest": context.store.blobs.put_bytes(png(pixels)), "image_digest": spec.image_digest}
    rows: list[dict[str, Any]] = []
    for number, ref in enumerate(ids):
        context.check()
        context.progress(number / len(ids), f"model {number + 1} of {len(ids)}", force=True)
        model = load(context.store, ref, context.device).model
        model.config.check_image_size(spec.image_size, spec.image_size)
        z = model.encode(x)
        made = to_uint8(model.decode(z))
        digests[f"made_{number}_digest"] = context.store.blobs.put_bytes(png(made[0]))
        digests[f"latent_{number}_digest"] = context.store.blobs.put_bytes(png(latent_picture(z[0].float().cpu().numpy())))
        rows.append({"model_id": ref, "psnr_db": float(psnr_db(made, pixels[None], content)[0]), "latent_channels": z.shape[1]})
    return Outcome(result={**digests, "models": rows})


def latent_picture(z_CHW: np.ndarray) -> np.ndarray:
    """Latent channels side by side, eight in a row with a pixel between, grey, each from its least to its largest; `(H, W, 3)` uint8."""
    channels, height, width = z_CHW.shape
    rows = -(-channels // LATENT_COLUMNS)
    board = np.zeros((rows * (height + 1) - 1, min(channels, LATENT_COLUMNS) * (width + 1) - 1), dtype=np.float32)
    for number, channel in enumerate(z_CHW):
        span = float(channel.max() - channel.min())
        top, left = number // LATENT_COLUMNS * (height + 1), number % LATENT_COLUMNS * (width + 1)
        board[top : top + height, left : left + width] = (channel - channel.min()) / span if span else 0.5
    return np.repeat((board * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)
