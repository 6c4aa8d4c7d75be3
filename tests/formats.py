"""Writes a model file and a training checkpoint in the present formats: what `tests/assets/formats` keeps of every format there was.

Whoever raises a FORMAT runs `.venv/bin/python -m tests.formats` afterwards and commits what it writes; those of earlier formats were
written by the code of their time and are never written again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcaecore import (
    DCAE,
    VARIANTS,
    BatchStream,
    DataSource,
    DCAEConfig,
    ImageCache,
    Layout,
    PinnedImages,
    TrainSettings,
    checkpoint,
    checkpoints,
    latest_checkpoint,
    open_frames,
    pin,
    save_model,
    split_rows,
    train,
)

FOLDER = Path(__file__).parent / "assets" / "formats"
_CODER = replace(VARIANTS["tiny"].encoder, widths=(4, 4, 8, 8), head_dim=4, expand=1)
MICRO = DCAEConfig(_CODER, replace(_CODER, resample="shuffle"), latent_channels=4)
"""Every kind of block in 4 thousand weights."""
LAYOUT = Layout({"encoder.stages.3.blocks.0.heads": (1,)})
MASKED = "decoder.conv_in.weight"
SETTINGS = TrainSettings(
    n_epochs=2, steps_per_epoch=2, warmup_epochs=0, init_lr=1e-3, ema_decay=0.5, eval_interval=2, save_interval=1
)


def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights that need no random generator, and the mask of one tensor."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DCAE(MICRO, LAYOUT).state_dict().items()}
    state = {name: torch.linspace(-0.5, 0.5, shape.numel()).reshape(shape) for name, shape in shapes.items()}
    mask = (torch.arange(state[MASKED].numel()) % 3 > 0).reshape(state[MASKED].shape)
    state[MASKED] = state[MASKED].masked_fill(~mask, 0.0)
    return state, {MASKED: mask}


def training(folder: Path) -> tuple[DCAE, BatchStream, PinnedImages]:
    """A model, images that are drawn into `folder`, and validation images."""
    ramp = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3)
    for number in range(12):
        Image.fromarray((ramp * (number + 1) % 251).astype(np.uint8)).save(folder / f"{number:02d}.png")
    frames = open_frames(DataSource("folder", str(folder)), cache_folder=folder)
    cache, rows = ImageCache(frames, 32), split_rows(frames)
    model = DCAE(MICRO, LAYOUT)
    model.load_state_dict(weights()[0])
    return model, BatchStream(cache, rows.train, batch_size=2, seed=0), pin(cache, rows.validation, 2)


def main() -> None:
    import tempfile

    state, masks = weights()
    save_model(FOLDER / f"model-{checkpoint.FORMAT}.safetensors", state, config=MICRO, layout=LAYOUT, masks=masks)
    with tempfile.TemporaryDirectory() as scratch:
        model, stream, pinned = training(Path(scratch))
        saved = Path(scratch) / "checkpoints"
        train(model, replace(SETTINGS, n_epochs=1), stream, pinned, masks=masks, folder=saved)
        target = FOLDER / f"training-{checkpoints.FORMAT}"
        shutil.rmtree(target, ignore_errors=True)
        found = latest_checkpoint(saved)
        assert found is not None
        shutil.copytree(found, target / found.name)


if __name__ == "__main__":
    main()
