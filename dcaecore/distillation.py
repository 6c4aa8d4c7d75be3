"""Distillation: a dense teacher's output, latents and stage features as further targets of a training.

Features are the residual streams behind each stage, compared on the channels that the student still has, each divided by the
teacher's own mean square, so that one weight serves all stages (reference: FitNets, arXiv 1412.6550; "Knowledge distillation",
arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcaecore.config import check_teacher
from dcaecore.layout import Layout
from dcaecore.model import DCAE

_LEAST = 1e-12


@dataclass(frozen=True)
class DistillWeights:
    """Weights of the three terms beside the reconstruction loss; 0 is off."""

    output: float = 0.0
    latent: float = 0.0
    features: float = 0.0

    @property
    def any(self) -> bool:
        return max(self.output, self.latent, self.features) > 0


class Distillation:
    """The terms of one teacher for one student; `mean` is over the processes that share a batch.

    Raises ConfigError where their latents or stages differ in shape.
    """

    def __init__(
        self, teacher: DCAE, student: DCAE, weights: DistillWeights, *, mean: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        check_teacher(teacher.config, student.config, features=weights.features > 0)
        self.teacher = teacher.eval().requires_grad_(False)
        self.student, self.weights, self.mean = student, weights, mean
        self.common = _common_channels(teacher, student) if weights.features > 0 else {}

    def __call__(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The student's output, the weighted sum of the terms, and the terms by name, for images `(B, 3, H, W)`."""
        with torch.no_grad(), _streams(self.teacher, self.common) as wanted:
            z_teacher = self.teacher.encode(x_BCHW)
            y_teacher = self.teacher.decode(z_teacher) if self._needs_decoder else None
        with _streams(self.student, self.common) as found:
            z = self.student.encode(x_BCHW)
            y = self.student.decode(z)
        parts: dict[str, Tensor] = {}
        if self.weights.output > 0 and y_teacher is not None:
            parts["distill_output"] = self.weights.output * (y.float() - y_teacher.float()).abs().mean()
        if self.weights.latent > 0:
            parts["distill_latent"] = self.weights.latent * self._error(z, z_teacher)
        if self.weights.features > 0:
            errors = []
            for name, (of_teacher, of_student) in self.common.items():
                target = wanted[name].index_select(1, of_teacher.to(x_BCHW.device))
                errors.append(self._error(found[name].index_select(1, of_student.to(x_BCHW.device)), target))
            parts["distill_features"] = self.weights.features * torch.stack(errors).mean()
        return y, torch.stack(list(parts.values())).sum(), parts

    def _error(self, found: Tensor, target: Tensor) -> Tensor:
        return relative_error(found, target, self.mean)

    @property
    def _needs_decoder(self) -> bool:
        return self.weights.output > 0 or self.weights.features > 0


def relative_error(found: Tensor, target: Tensor, mean: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Mean square of the difference over the target's mean square, the latter's `mean` over the processes that share the batch."""
    target = target.float()
    size = target.square().mean()
    return (found.float() - target).square().mean() / (size if mean is None else mean(size)).clamp_min(_LEAST)


def _stage_outputs(model: DCAE) -> dict[str, tuple[str, int]]:
    """Module name -> (coder, stage) of the stream that it puts out. An encoder's stage ends with its resampling layer."""
    found = {}
    encoder, decoder = model.config.encoder, model.config.decoder
    for stage in range(encoder.first_stage, encoder.num_stages):
        found[f"encoder.stages.{stage}"] = ("encoder", min(stage + 1, encoder.num_stages - 1))
    for stage in range(decoder.first_stage, decoder.num_stages):
        found[f"decoder.stages.{stage}"] = ("decoder", stage)
    return found


def _common_channels(teacher: DCAE, student: DCAE) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> positions of the channels that both have (none held at zero), in the teacher's and in the student's stream."""

    def channels(model: DCAE, layout: Layout, place: tuple[str, int]) -> tuple[int, ...]:
        return layout.stream(model.config, *place)

    found = {}
    for name, place in _stage_outputs(student).items():
        ours, theirs = channels(student, student.layout, place), channels(teacher, teacher.layout, place)
        both = sorted((set(ours) & set(theirs)) - {*student.layout.held_channels(student.config, *place)})
        if both:
            found[name] = (
                torch.tensor([theirs.index(c) for c in both]),
                torch.tensor([ours.index(c) for c in both]),
            )
    return found


@contextmanager
def _streams(model: DCAE, names: dict[str, tuple[Tensor, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Collects what the named stages put out."""
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def hook(name: str) -> object:
        def take(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[name] = output

        return take

    handles = [modules[name].register_forward_hook(hook(name)) for name in names]  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
