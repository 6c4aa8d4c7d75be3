"""LPIPS of images from weights that lie on this machine; nothing is downloaded. Off, with the reason, where they are not there.

Zhang, Isola, Efros, Shechtman and Wang 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", version 0.1 with
AlexNet: features after each of five ReLUs, of unit length over their channels, squared differences weighted by a learned non-negative
weight a channel, means over places, and the sum over layers. 0 is alike. Two files make it, as their authors publish them: torchvision's
AlexNet and the linear layers of the `lpips` package.

Padding counts for nothing: a model's square images are cut down to their content first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcaecore.errors import CheckpointError
from dcaecore.pinned import to_tensor

BACKBONE, LINEAR = "alexnet-owt-7be5be79.pth", "alex.pth"
CHANNELS = (64, 192, 384, 256, 256)
LEAST_SIDE = 64
"""Under this the last features of AlexNet are a place or two."""
_CONVOLUTIONS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
"""In, out, kernel, stride, padding."""
_PLACES = (0, 3, 6, 8, 10)
"""Of the convolutions in torchvision's `features`."""
_POOLED_BEFORE = (1, 2)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file, which is never executed; raises CheckpointError for one that is damaged or no state dict."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for files that are no pickle, cut short, or would run code
        raise CheckpointError(
            f"{path.name} cannot be read: {error}", code="not_a_checkpoint", given=str(path), next="Download it again."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path.name} holds no weights.", code="not_a_checkpoint", given=str(path), legal="a state dict")
    return found


def load_strictly(module: nn.Module, found: dict[str, Tensor], *, name: str) -> None:
    """Fills a module; raises CheckpointError for the first weight that is missing or has another shape. Others are left aside."""
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in found or found[key].shape != value.shape:
            given: Any = list(found[key].shape) if key in found else None
            raise CheckpointError(
                f"{name} has no {key} of shape {list(value.shape)}.", code="wrong_keys", given=given, legal=list(value.shape)
            )
    module.load_state_dict({key: found[key] for key in module.state_dict() if key in found}, strict=False)
    module.eval().requires_grad_(False)


class Lpips(nn.Module):
    """The network; `from_folder` fills it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                str(at): nn.Conv2d(*conv[:3], stride=conv[3], padding=conv[4])
                for at, conv in zip(_PLACES, _CONVOLUTIONS, strict=True)
            }
        )
        self.linear = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1)) for width in CHANNELS])
        self.digest = ""

    @classmethod
    def from_folder(cls, folder: Path) -> Lpips:
        """Reads both files; raises CheckpointError where they do not fit."""
        made = cls()
        linear = read_weights(folder / LINEAR)
        renamed = {f"linear.{i}": linear[key] for i in range(5) if (key := f"lin{i}.model.1.weight") in linear}
        load_strictly(made, {**read_weights(folder / BACKBONE), **renamed}, name=f"{BACKBONE} with {LINEAR}")
        made.digest = file_digest(folder, BACKBONE, LINEAR)
        return made

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """LPIPS `(N,)` of images in [-1, 1]."""
        total = torch.zeros(len(x_NCHW), device=x_NCHW.device)
        for weight, x, y in zip(self.linear, self._seen(x_NCHW), self._seen(y_NCHW), strict=True):
            total = total + ((x - y).square() * weight).sum(1).mean((1, 2))
        return total

    def _seen(self, x_NCHW: Tensor) -> list[Tensor]:
        """Features of each layer, of unit length."""
        shift, scale = (x_NCHW.new_tensor(v).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        x, found = (x_NCHW - shift) / scale, []
        for number, convolution in enumerate(self.features.values()):
            if number in _POOLED_BEFORE:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(convolution(x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found


def file_digest(folder: Path, *names: str) -> str:
    """Twelve hex digits of the files: figures of other weights are other figures."""
    digest = hashlib.sha256()
    for name in names:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:12]


@torch.inference_mode()
def lpips(net: Lpips, output: np.ndarray, target: np.ndarray, content: np.ndarray) -> np.ndarray:
    """LPIPS of uint8 `(N, H, W, 3)` over the content box of bool `(N, H, W)`, `(N,)`; NaN where that is under `LEAST_SIDE` px."""
    found = np.full(len(output), np.nan)
    device = next(net.parameters()).device
    for index in range(len(output)):
        rows, columns = (np.flatnonzero(content[index].any(axis=axis)) for axis in (1, 0))
        if min(len(rows), len(columns)) < LEAST_SIDE:
            continue
        box = np.s_[index : index + 1, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        x, y = (to_tensor(np.ascontiguousarray(images[box])).to(device) for images in (output, target))
        found[index] = float(net(x, y)[0])
    return found
