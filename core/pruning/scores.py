"""Scores of units: the L2 norm over all the weights that go with a unit.

torch-pruning computes the scores of ResBlock channels (`GroupMagnitudeImportance` over its dependency group of the block). For
GLU pairs and attention heads its groups are wrong (of a GLU it sees half of the last convolution; of LiteMLA no head), so those
are summed here over the slices of `units.py`. A test holds the two equal where both are right.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.pruning.units import unit_slices
from dcaecore import DCAE, Layout, Site, sites
from dcaecore.config import DCAEConfig


def l2_scores(model: DCAE) -> dict[str, np.ndarray]:
    """Score of each unit of each site, `(units,)` float64."""
    state = model.state_dict()
    blocks = dict(model.named_modules())
    found: dict[str, np.ndarray] = {}
    for name, site in sites(model.config).items():
        if site.kind == "mid":
            found[name] = resblock_scores(blocks[name.rpartition(".")[0]])
        else:
            found[name] = sliced_l2(state, model.config, model.layout, site)
    return found


def sliced_l2(state: Mapping[str, Tensor], config: DCAEConfig, layout: Layout, site: Site) -> np.ndarray:
    """L2 norm of each unit's weights (biases left out, as torch-pruning does), by the slices of `units.py`."""
    units = layout.width(site)
    total = torch.zeros(units, dtype=torch.float64)
    for part in unit_slices(config, layout, site, range(units)):
        if part.tensor.endswith(".bias"):
            continue
        value = state[part.tensor].detach().double().square()
        rows = value.sum(dim=[d for d in range(value.ndim) if d != part.dim]).cpu()[torch.from_numpy(part.indices)]
        total.index_add_(0, _unit_of(part.indices, site, config, units), rows)
    return total.sqrt().numpy()


def _unit_of(indices: np.ndarray, site: Site, config: DCAEConfig, units: int) -> Tensor:
    """The unit that each index of a slice over all units belongs to."""
    if site.kind != "heads":
        return torch.from_numpy(np.arange(len(indices)) % units)
    # A head's rows lie together; the columns of proj repeat the heads once for each scale.
    dim = config.coder(site.coder).head_dim
    run = 3 * dim if len(indices) == 3 * dim * units else dim
    return torch.from_numpy(np.arange(len(indices)) // run % units)


def resblock_scores(block: Any) -> np.ndarray:
    """L2 norm of each middle channel of a ResBlock, by torch-pruning."""
    import copy

    import torch_pruning as tp

    block = copy.deepcopy(block).cpu().float().requires_grad_(True)
    channels = block.conv1.in_channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(block, example_inputs=torch.zeros(1, channels, 4, 4))
        everything = list(range(block.conv1.out_channels))
        group = graph.get_pruning_group(block.conv1, tp.prune_conv_out_channels, idxs=everything)
        importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None, bias=False)
        values = importance(group)
    return values.detach().double().sqrt().numpy()
