"""What moves the weights: the optimizer with its parameter groups, masks that keep pruned weights pruned, the moving average.

Masks hold at two places. Gradients are masked before they are clipped, so a pruned weight neither counts in the gradient's norm
nor gathers moments: with a gradient and moments of zero an optimizer moves a weight by exactly zero, and decay leaves a zero at zero.
Muon alone mixes a matrix's elements: there weights are masked after every step. Weights (and after a restore moments) are masked
besides before anything is scored, stored or resumed. A gradient hook alone refilled 1,917,485 of 1,917,536 zeros, by moments that it
had before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dcaecore.errors import ConfigError
from dcaecore.muon import Muon, is_hidden_matrix

OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "muon")
MIXING = ("muon",)
"""They move weights whose gradient and moments are zero."""


class OptimizerSettings(Protocol):
    """The fields of a training's settings that build its optimizer."""

    @property
    def optimizer_name(self) -> str: ...
    @property
    def init_lr(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def decay_norms_and_biases(self) -> bool: ...
    @property
    def muon_max_side(self) -> int: ...


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay: vectors (norms, biases) are spared unless asked for."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 or decay_norms_and_biases]
    spared = [p for p in trained if p.ndim <= 1 and not decay_norms_and_biases]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    return [*groups, {"params": spared, "weight_decay": 0.0}] if spared else groups


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW, Adam, SGD, RMSprop or Muon over the model's trainable parameters; raises ConfigError for another name."""
    groups = parameter_groups(model, weight_decay=settings.weight_decay, decay_norms_and_biases=settings.decay_norms_and_biases)
    name = settings.optimizer_name
    if name == "muon":
        groups = _with_muon(model, groups, settings.muon_max_side)
        return Muon(groups, lr=settings.init_lr, betas=settings.betas, eps=settings.eps, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=settings.init_lr, momentum=settings.momentum)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=settings.init_lr, momentum=settings.momentum, eps=settings.eps)
    if name not in OPTIMIZERS:
        raise ConfigError(f"There is no optimizer {name!r}.", given=name, legal=OPTIMIZERS)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.init_lr, betas=settings.betas, eps=settings.eps, fused=True)


def _with_muon(model: nn.Module, groups: list[dict[str, Any]], max_side: int) -> list[dict[str, Any]]:
    """Each group, split into what Muon moves and what AdamW does."""
    hidden = {id(p) for name, p in model.named_parameters() if is_hidden_matrix(name, p, max_side)}
    found = []
    for group in groups:
        for muon in (True, False):
            members = [p for p in group["params"] if (id(p) in hidden) is muon]
            if members:
                found.append({**group, "params": members, "muon": muon})
    return found


class WeightMasks:
    """Keeps pruned weights at zero through a training. `masks`: parameter name -> bool, True = kept."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        unknown = sorted(set(masks) - set(parameters))
        if unknown:
            raise ConfigError(f"A mask names {unknown[0]}, which the model has not.", given=unknown[:5])
        self._names = list(masks)
        self._parameters = [parameters[name] for name in masks]
        self._masks: list[Tensor] = []
        for (name, mask), parameter in zip(masks.items(), self._parameters, strict=True):
            if mask.shape != parameter.shape:
                raise ConfigError(f"The mask of {name} does not fit.", given=list(mask.shape), legal=list(parameter.shape))
            # In the weights' own memory order and, on the CPU, as float: 5 ms a pass over the demo model instead of 12.
            fitted = torch.empty_like(parameter, dtype=torch.bool).copy_(mask)
            self._masks.append(fitted.to(parameter.dtype) if parameter.device.type == "cpu" else fitted)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Before clipping; parameters without a gradient are left alone."""
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Before the first step, and before the weights are scored or stored."""
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            parameter.mul_(mask)

    def mask_state(self, state: Mapping[str, Tensor]) -> None:
        """The same for weights that lie elsewhere, by name: the average, the best so far. An empty state is left alone."""
        for name, mask in zip(self._names, self._masks, strict=True):
            if name in state:
                state[name].mul_(mask.to(state[name].device))

    @torch.no_grad()
    def mask_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Once, where moments may come from before the pruning: after a restore."""
        for parameter, mask in zip(self._parameters, self._masks, strict=True):
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == mask.shape:
                    moment.mul_(mask)


class MovingAverage:
    """An exponential moving average of a model's weights; empty and idle where `decay` is 0.

    Statistics (BatchNorm's buffers) are averaged too, counters copied. Zeros of masked weights stay zeros: an average of zeros is
    zero to the bit.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = dict(model.state_dict()) if decay > 0 else {}
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._live.items()}
        self._floats = [name for name, value in self._live.items() if value.is_floating_point()]
        self._counters = [name for name, value in self._live.items() if not value.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (from 1). Its decay warms up, so that it forgets the first weights soon in a short training."""
        if not self.state:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.state[n] for n in self._floats], [self._live[n] for n in self._floats], weight)
        for name in self._counters:
            self.state[name].copy_(self._live[name])

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the average of a checkpoint."""
        for name, value in self.state.items():
            value.copy_(state[name])
