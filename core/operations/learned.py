"""LPIPS and rFID of an evaluation, where their weights lie in the weights folder; what is off is said in the job's log."""

from __future__ import annotations

import numpy as np

from core.learned_figures import LEARNED, why_off
from core.operations.context import Context
from dcaecore import PinnedImages
from dcaecore.inception import LEAST_IMAGES, Inception, rfid
from dcaecore.lpips import Lpips, lpips


def learned_figures(
    context: Context, output: np.ndarray, pinned: PinnedImages
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, str]]:
    """(figures of each image, figures of the whole set, digests of the weights) of uint8 reconstructions of the pinned images.

    Raises CheckpointError for files that are there and do not fit.
    """
    folder = context.settings.weights_dir
    off = why_off(folder)
    for reason in off.values():
        context.log("info", reason)
    per_image: dict[str, np.ndarray] = {}
    of_set: dict[str, float] = {}
    weights: dict[str, str] = {}
    if "lpips" not in off:
        measure = Lpips.from_folder(folder).to(context.device)
        per_image["lpips"], weights["lpips"] = lpips(measure, output, pinned.images, pinned.content), measure.digest
    if "rfid" not in off and len(pinned) < LEAST_IMAGES:
        context.log("info", f"No {LEARNED['rfid'][0]}: it needs {LEAST_IMAGES} images, not {len(pinned)}.")
    elif "rfid" not in off:
        net = Inception.from_folder(folder).to(context.device)
        of_set["rfid"], weights["rfid"] = rfid(net, output, pinned.images), net.digest
    return per_image, of_set, weights
