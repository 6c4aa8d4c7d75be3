"""rFID: the Fréchet distance between Inception features of images and of their reconstructions, from weights on this machine.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule"; the network is the Inception v3 of the original TensorFlow FID, in the
weights that `pytorch-fid` publishes: its average pools leave padding out, and the last block pools the maximum. Images are resized to
299 px. The distance is of the whole set; there is none of a single image. Off, with the reason, where the weights are not there, and with
fewer than `LEAST_IMAGES` images: the covariance of 2048 features from fewer is singular, and the figure would be mostly bias.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcaecore.lpips import file_digest, load_strictly, read_weights
from dcaecore.pinned import to_tensor

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
FEATURES = 2048
LEAST_IMAGES = FEATURES
SIDE = 299
_BATCH = 32


def _inner_average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 1, stride: int = 1, padding: bool = False
    ) -> None:
        super().__init__()
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        around = (sides[0] // 2, sides[1] // 2) if padding or isinstance(kernel, tuple) else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, around, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Block(nn.Module):
    """Branches side by side, each a chain of named convolutions; `"pool"` in a chain is the block's pool."""

    def __init__(self, layers: dict[str, _Conv], chains: list[list[str]], pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._chains, self._pool = chains, pool

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for chain in self._chains:
            y = x
            for name in chain:
                y = self._pool(y) if name == "pool" else self.get_submodule(name)(y)
            found.append(y)
        return torch.cat(found, 1)


def _a(inputs: int, pooled: int) -> _Block:
    layers = {
        "branch1x1": _Conv(inputs, 64), "branch5x5_1": _Conv(inputs, 48), "branch5x5_2": _Conv(48, 64, 5, padding=True),
        "branch3x3dbl_1": _Conv(inputs, 64), "branch3x3dbl_2": _Conv(64, 96, 3, padding=True),
        "branch3x3dbl_3": _Conv(96, 96, 3, padding=True), "branch_pool": _Conv(inputs, pooled),
    }  # fmt: skip
    double = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return _Block(layers, [["branch1x1"], ["branch5x5_1", "branch5x5_2"], double, ["pool", "branch_pool"]], _inner_average)


def _b(inputs: int) -> _Block:
    layers = {
        "branch3x3": _Conv(inputs, 384, 3, 2), "branch3x3dbl_1": _Conv(inputs, 64),
        "branch3x3dbl_2": _Conv(64, 96, 3, padding=True), "branch3x3dbl_3": _Conv(96, 96, 3, 2),
    }  # fmt: skip
    return _Block(layers, [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["pool"]], _halved)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


def _c(inputs: int, width: int) -> _Block:
    layers = {
        "branch1x1": _Conv(inputs, 192), "branch7x7_1": _Conv(inputs, width), "branch7x7_2": _Conv(width, width, (1, 7)),
        "branch7x7_3": _Conv(width, 192, (7, 1)), "branch7x7dbl_1": _Conv(inputs, width), "branch7x7dbl_2": _Conv(width, width, (7, 1)),
        "branch7x7dbl_3": _Conv(width, width, (1, 7)), "branch7x7dbl_4": _Conv(width, width, (7, 1)),
        "branch7x7dbl_5": _Conv(width, 192, (1, 7)), "branch_pool": _Conv(inputs, 192),
    }  # fmt: skip
    single, double = ([f"branch7x7{kind}_{i}" for i in range(1, last + 1)] for kind, last in (("", 3), ("dbl", 5)))
    return _Block(layers, [["branch1x1"], single, double, ["pool", "branch_pool"]], _inner_average)


def _d(inputs: int) -> _Block:
    layers = {
        "branch3x3_1": _Conv(inputs, 192), "branch3x3_2": _Conv(192, 320, 3, 2), "branch7x7x3_1": _Conv(inputs, 192),
        "branch7x7x3_2": _Conv(192, 192, (1, 7)), "branch7x7x3_3": _Conv(192, 192, (7, 1)), "branch7x7x3_4": _Conv(192, 192, 3, 2),
    }  # fmt: skip
    long = [f"branch7x7x3_{i}" for i in range(1, 5)]
    return _Block(layers, [["branch3x3_1", "branch3x3_2"], long, ["pool"]], _halved)


def _e(inputs: int, pool: Callable[[Tensor], Tensor]) -> _Block:
    layers = {
        "branch1x1": _Conv(inputs, 320), "branch3x3_1": _Conv(inputs, 384), "branch3x3_2a": _Conv(384, 384, (1, 3)),
        "branch3x3_2b": _Conv(384, 384, (3, 1)), "branch3x3dbl_1": _Conv(inputs, 448), "branch3x3dbl_2": _Conv(448, 384, 3, padding=True),
        "branch3x3dbl_3a": _Conv(384, 384, (1, 3)), "branch3x3dbl_3b": _Conv(384, 384, (3, 1)), "branch_pool": _Conv(inputs, 192),
    }  # fmt: skip
    double = ["branch3x3dbl_1", "branch3x3dbl_2"]
    chains = [["branch1x1"], ["branch3x3_1", "branch3x3_2a"], ["branch3x3_1", "branch3x3_2b"]]
    return _Block(layers, [*chains, [*double, "branch3x3dbl_3a"], [*double, "branch3x3dbl_3b"], ["pool", "branch_pool"]], pool)


class Inception(nn.Module):
    """Images in [-1, 1], `(N, 3, H, W)`, to `(N, 2048)` features; `from_folder` fills it."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_c(768, width) for width in (128, 160, 160, 192))
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, _inner_average), _e(2048, _maximum)
        self.digest = ""

    @classmethod
    def from_folder(cls, folder: Path) -> Inception:
        """Reads the file; raises CheckpointError where it does not fit."""
        made = cls()
        load_strictly(made, read_weights(folder / WEIGHTS), name=WEIGHTS)
        made.digest = file_digest(folder, WEIGHTS)
        return made

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = _halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, block in self.named_children():
            if name.startswith("Mixed_"):
                x = block(x)
        return x.mean((2, 3))


@torch.inference_mode()
def features(net: Inception, images_NHWC: np.ndarray) -> np.ndarray:
    """Features of uint8 images, float64 `(N, 2048)`."""
    device, found = next(net.parameters()).device, []
    for start in range(0, len(images_NHWC), _BATCH):
        found.append(net(to_tensor(images_NHWC[start : start + _BATCH]).to(device)).double().cpu().numpy())
    return np.concatenate(found)


def frechet_distance(x_NF: np.ndarray, y_NF: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians fitted to rows of features (Dowson and Landau 1982).

    `|mx - my|² + tr(Cx) + tr(Cy) - 2 tr((Cx Cy)^½)`. The last trace is the sum of the roots of the eigenvalues of `Cx^½ Cy Cx^½`, which is
    symmetric, so no complex root has to be cut off.
    """
    mean_x, mean_y = x_NF.mean(axis=0), y_NF.mean(axis=0)
    cov_x, cov_y = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (x_NF, y_NF))
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0.0)).sum()
    return float(np.square(mean_x - mean_y).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * shared)


def rfid(net: Inception, output: np.ndarray, target: np.ndarray) -> float:
    """rFID of uint8 `(N, H, W, 3)` reconstructions, whole squares; raises ValueError under `LEAST_IMAGES`."""
    if len(output) < LEAST_IMAGES:
        raise ValueError(f"rFID needs {LEAST_IMAGES} images, not {len(output)}")
    return frechet_distance(features(net, output), features(net, target))
