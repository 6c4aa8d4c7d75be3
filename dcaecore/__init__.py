"""DC-AE (deep compression autoencoder), usable alone: model, weights, data, losses, figures, training.

Importing the package loads no torch: names are looked up on first use (PEP 562). The names below are the public surface.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC: dict[str, tuple[str, ...]] = {
    "batches": ("Batch", "BatchStream", "ImageCache"),
    "callbacks": ("NullCallbacks", "TrainCallbacks"),
    "checkpoint": ("LoadedModel", "load_model", "read_header", "save_model", "weights_digest"),
    "checkpoints": ("latest_checkpoint", "load_checkpoint", "save_checkpoint"),
    "config": ("CoderConfig", "DCAEConfig"),
    "cost": ("Cost", "ModuleCost", "estimate"),
    "data": ("DataSource", "Frames", "Splits", "open_frames", "split_rows"),
    "distillation": ("Distillation", "DistillWeights"),
    "errors": ("CheckpointError", "ConfigError", "DataError", "DcaeError", "TrainingError"),
    "image_losses": ("ImageLosses",),
    "layout": ("Layout", "Site", "in_flow", "sites"),
    "losses": ("ReconstructionLoss", "lpips_status"),
    "metrics": ("ImageScores", "evaluate_images", "latent_drift", "means", "median_scores", "score_psnr"),
    "mixture": ("JoinedFrames", "joined_pinned"),
    "model": ("DCAE",),
    "perceptual": ("LEAST_MS_SSIM_SIDE", "perceptual_scores"),
    "pinned": ("PinnedImages", "pin", "to_uint8"),
    "pretrained": ("Pretrained", "from_pretrained"),
    "sample_data": ("SAMPLE_SETS", "ensure_sample_set", "write_sample_set"),
    "sampling": ("Order", "RowOrder"),
    "schedules": ("SCHEDULES", "learning_rate", "schedule_warning"),
    "train_settings": ("TrainSettings",),
    "shares": ("MixedOrder",),
    "trainer": ("TrainResult", "train"),
    "world": ("ALONE", "World", "joined"),
    "zoo": ("DEMO_FILE", "DEMO_VARIANT", "HUB_IDS", "VARIANTS", "find_variant"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"dcaecore has no {name!r}")
    return getattr(importlib.import_module(f"dcaecore.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
