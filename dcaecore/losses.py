"""The training loss: a pixel loss, weighted towards what moves, and optionally a perceptual term."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dcaecore.errors import ConfigError

RECONSTRUCTION_LOSSES = ("l1", "mse", "l1+mse")


def lpips_status() -> tuple[bool, str]:
    """Whether LPIPS can be used here, and if not, why."""
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            return False, f"the package `{package}` is not installed (pip install lpips torchvision, and its weights)"
    return True, "available"


class ReconstructionLoss(nn.Module):
    """`reconstruction + perceptual_weight * LPIPS`, padding included.

    Each pixel's weight is `foreground_weight` in the foreground and 1 elsewhere; the loss is the weighted mean, so its scale does
    not depend on the weight. Images are in [-1, 1]: an L1 of 0.01 is 1.3 of 255.
    """

    def __init__(self, kind: str = "l1", *, foreground_weight: float = 1.0, perceptual_weight: float = 0.0) -> None:
        super().__init__()
        if kind not in RECONSTRUCTION_LOSSES:
            raise ConfigError(f"There is no reconstruction loss {kind!r}.", given=kind, legal=RECONSTRUCTION_LOSSES)
        self.kind = kind
        self.foreground_weight = foreground_weight
        self.perceptual_weight = perceptual_weight
        self._lpips: Any = None
        if perceptual_weight > 0:
            available, reason = lpips_status()
            if not available:
                raise ConfigError(f"The perceptual loss is off: {reason}.", code="no_lpips", given=perceptual_weight, legal=0.0)
            import lpips

            self._lpips = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def forward(
        self, output_BCHW: Tensor, target_BCHW: Tensor, foreground_B1HW: Tensor, *, mean: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The total and its parts, as scalars that carry gradients; each image's own pixel loss, `(B,)`, without a gradient or LPIPS.

        `mean` is over the processes that hold the rest of the batch: the mean of what it returns on each is the loss of the whole.
        """
        difference = output_BCHW.float() - target_BCHW
        values, pixels = {}, difference[0].numel()
        if "l1" in self.kind:
            values["l1"] = difference.abs()
        if "mse" in self.kind:
            values["mse"] = difference.square()
        if self.foreground_weight == 1.0:
            own = torch.full((len(difference),), float(pixels), device=difference.device)
            total = own.sum()
        else:
            # Padding counts like background (figures leave it out): a model that may put anything there shows it, and a world model
            # sees it.
            weight = 1.0 + (self.foreground_weight - 1.0) * foreground_B1HW.to(difference.dtype)
            values = {name: value * weight for name, value in values.items()}
            own = weight.sum(dim=(1, 2, 3)) * difference.shape[1]
            total = own.sum() if mean is None else mean(own.sum())
        sums = {name: value.sum(dim=(1, 2, 3)) for name, value in values.items()}
        parts = {name: value.sum() / total for name, value in sums.items()}
        loss = torch.stack(list(parts.values())).sum()
        each = torch.stack([value.detach() / own for value in sums.values()]).sum(dim=0)
        if self._lpips is not None:
            parts["lpips"] = self._lpips(output_BCHW.float(), target_BCHW).mean()
            loss = loss + self.perceptual_weight * parts["lpips"]
        return loss, parts, each
