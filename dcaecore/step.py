"""What a step computes and tells: the loss of a batch as a module of its own, and the figures on their way from the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcaecore.distillation import Distillation
from dcaecore.errors import TrainingError
from dcaecore.losses import ReconstructionLoss
from dcaecore.world import ALONE, World


class StepLoss(nn.Module):
    """From images to the loss and its parts, with gradients; distillation and kept latents included.

    A module, so that DistributedDataParallel can wrap whatever a step computes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ReconstructionLoss,
        *,
        distillation: Distillation | None = None,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
        world: World = ALONE,
    ) -> None:
        super().__init__()
        self.world = world
        self.model, self.loss, self.distillation, self.autocast = model, loss, distillation, autocast
        # The bound method: as an attribute, a compiled model would be a second submodule with the same parameters.
        subject: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
        self.rebuild: Callable[[Tensor], Tensor] = subject.__call__

    def forward(
        self, x_BCHW: Tensor, seen_BCHW: Tensor, moving_B1HW: Tensor, latents_BChw: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Also the pixel loss of each image, `(B,)`, without a gradient.

        `seen_BCHW` is what the model is given, `x_BCHW` what it must rebuild; latents, where there are any, replace the encoder.
        """
        with torch.autocast(x_BCHW.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            if self.distillation is not None:
                y, taught, terms = self.distillation(seen_BCHW)
            elif latents_BChw is not None:
                y = self.model.decode(latents_BChw)  # type: ignore[operator]
            else:
                y = self.rebuild(seen_BCHW)
        loss, parts, each = self.loss(y, x_BCHW, moving_B1HW, mean=self.world.mean)
        if self.distillation is not None:
            return loss + taught, {**parts, **terms}, each
        return loss, parts, each


@dataclass
class StepReport:
    """A step whose figures may still be on their way from the device."""

    step: int
    """Counted from 1."""
    rate: float
    names: tuple[str, ...]
    """Of the figures: loss, gradient norm, parts of the loss."""
    values: Tensor
    """On the CPU: the figures, then the loss of each image, then in a world of several the images' rows."""
    arrived: torch.cuda.Event | None
    started: float
    rows: tuple[int, ...] | None
    """Rows of the images, where this process has them all."""
    row_ids: Sequence[str]
    """Names of all rows of the source."""

    def read(self) -> dict[str, float]:
        """The figures; raises TrainingError where the loss or the gradient is not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
            self.arrived = None
        values = dict(zip(self.names, self.values[: len(self.names)].tolist(), strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            names = [self.row_ids[row] for row in self.images()[0]]
            rows = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise TrainingError(
                f"The loss or its gradient is not finite at step {self.step} (images {rows}).",
                code="not_finite",
                given=values["loss"],
                next="What was checkpointed before is whole. Lower init_lr, clip the gradient (grad_clip), or under bfloat16 use float32.",
            )
        return values

    def images(self) -> tuple[Sequence[int], list[float]]:
        """Rows and losses of the images, once the figures are read."""
        rest = self.values[len(self.names) :].tolist()
        if self.rows is not None:
            return self.rows, rest
        half = len(rest) // 2
        return [int(row) for row in rest[half:]], rest[:half]


def gathered(world: World, loss: Tensor, parts: Mapping[str, Tensor], each: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Loss and parts as means over the ranks, `(1 + len(parts),)`; losses of all images, in a world of several with their rows."""
    figures = torch.stack([loss, *parts.values()])
    if world.size == 1:
        return figures, each
    # In float64, which holds any row's number: one message a step.
    own = torch.cat([figures.double(), each.double(), torch.tensor(rows, dtype=torch.float64).to(each.device)])
    found, count = world.gather(own), len(figures)
    images = found[:, count : count + len(each)].flatten(), found[:, count + len(each) :].flatten()
    return found[:, :count].mean(dim=0), torch.cat(images)
