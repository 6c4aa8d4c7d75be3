"""What happens inside while a model trains: weights, gradients and activations of each part, sampled at validations.

A part is one of `dcaecore.freezing.part_names`. Weights and gradients are those of the step before the validation, activations those
of its first batch of pinned images; so a step costs nothing, and a validation one more pass over the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dcaecore.freezing import part_names
from dcaecore.model import DCAE

DEAD = 1e-6
"""A channel whose outputs all lie within this is dead."""


class LayerWatch:
    """Samples a model. Figures are named `<figure>.<part>`: weight_rms, gradient_rms, activation_rms, dead_ratio."""

    def __init__(self, model: DCAE) -> None:
        self.parts: dict[str, nn.Module] = {name: model.get_submodule(name) for name in part_names(model.config)}

    @torch.no_grad()
    def weights_and_gradients(self) -> dict[str, float]:
        """Root mean squares over the matrices of each part; no gradient figure where nothing of it trains."""
        found: dict[str, float] = {}
        for name, module in self.parts.items():
            weights = [p for p in module.parameters() if p.ndim > 1]
            gradients = [p.grad for p in weights if p.grad is not None]
            for figure, tensors in (("weight_rms", list[Tensor](weights)), ("gradient_rms", gradients)):
                if tensors:
                    squares = torch.stack(torch._foreach_norm(tensors)).square().sum()
                    found[f"{figure}.{name}"] = float((squares / sum(t.numel() for t in tensors)).sqrt())
        return found

    @contextmanager
    def activations(self) -> Iterator[dict[str, float]]:
        """Inside, the first output of each part is measured: its root mean square, and the share of its channels that are dead."""
        found: dict[str, float] = {}

        def hook(name: str) -> object:
            def take(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                if f"activation_rms.{name}" not in found:
                    values = output.detach().float()
                    found[f"activation_rms.{name}"] = float(values.square().mean().sqrt())
                    found[f"dead_ratio.{name}"] = float((values.abs().amax(dim=(0, 2, 3)) <= DEAD).float().mean())

            return take

        handles = [module.register_forward_hook(hook(name)) for name, module in self.parts.items()]  # type: ignore[arg-type]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
