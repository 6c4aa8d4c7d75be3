"""Networks that are no DC-AE: torch-pruning's own engine, which is right for plain convolutional ones (ResNets and the like)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from core.errors import CoreError


def prune_ordinary(model: nn.Module, example: Tensor, rate: float, *, ignored: tuple[nn.Module, ...] = ()) -> nn.Module:
    """Removes `rate` of each layer's channels by L2 magnitude, in place; returns the model.

    `example` is one input `(1, ...)`; `ignored` layers keep their outputs (give modules: types would be ignored silently). The last
    layer's outputs always stay. Training mode and requires_grad are as before.
    """
    import torch_pruning as tp

    if not 0.0 < rate < 1.0:
        raise CoreError("The rate lies between 0 and 1.", given=rate, legal="(0, 1)")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = model.training
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    model.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            model,
            example_inputs=example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=rate,
            ignored_layers=[*ignored, layers[-1]],
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        pruner.step()
    model.train(training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    with torch.no_grad():
        model(example)
    return model
