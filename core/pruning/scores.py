"""Scores of units, `(units,)` float64 for each site; the higher, the more a unit matters.

Weights alone: `l1`, `l2` (norm of all the weights that go with a unit), `lamp` (layer-adaptive magnitude, arXiv 2010.07611),
`fpgm` (distance to the other units' weights, arXiv 1811.00250), `random` (the control).
Calibration images: `taylor` (first-order change of the loss, arXiv 1906.10771), `wanda` (weight times activation norm, arXiv
2306.11695), `qr` (order of a column-pivoted QR: linear independence of the activations), `obs` (order of a backward elimination
that removes, each time, the unit whose best least-squares replacement by the others changes the folding layer's output least:
optimal brain surgeon, structured as in arXiv 2302.04852).

torch-pruning computes `l2` of ResBlock channels (`GroupMagnitudeImportance` over its dependency group of the block). For GLU pairs
and attention heads its groups are wrong (of a GLU it sees half of the last convolution; of LiteMLA no head), so those are summed
here over the slices of `units.py`. A test holds the two equal where both are right.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import CoreError
from core.pruning.calibration import SiteStatistics
from core.pruning.units import Slice, feature_units, folding_layer, unit_slices
from dcaecore import DCAE, Layout, Site, sites
from dcaecore.config import DCAEConfig

Scores = dict[str, np.ndarray]
WEIGHT_SCORES = ("l2", "l1", "lamp", "fpgm", "random")
STATISTICS_SCORES = ("wanda", "qr", "obs")
SCORES = (*WEIGHT_SCORES, "taylor", *STATISTICS_SCORES)
SHRINK_AT = 0.8
"""Share of units still there at which an elimination's matrices are made smaller."""


def score_units(
    model: DCAE,
    score: str,
    *,
    statistics: Mapping[str, SiteStatistics] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Scores:
    """Scores of the named sites (None: all). `statistics` for wanda, qr and obs, `gradients` for taylor (see `calibration`).

    A residual stream has no single layer that reads it: where the score is wanda, qr or obs it is scored by taylor.
    """
    known = sites(model.config)
    chosen = list(known) if names is None else list(names)
    state = model.state_dict()
    if score == "random":
        generator = np.random.default_rng(seed)
        return {name: generator.random(model.layout.width(known[name])) for name in chosen}
    if score == "l2":
        blocks = dict(model.named_modules())
        return {
            name: resblock_scores(blocks[name.rpartition(".")[0]])
            if known[name].kind == "mid"
            else sliced_norm(state, model.config, model.layout, known[name], 2)
            for name in chosen
        }
    if score == "l1":
        return {name: sliced_norm(state, model.config, model.layout, known[name], 1) for name in chosen}
    if score == "lamp":
        return {name: lamp(sliced_norm(state, model.config, model.layout, known[name], 2)) for name in chosen}
    if score == "fpgm":
        return {name: fpgm(unit_vectors(state, model.config, model.layout, known[name])) for name in chosen}
    if score == "taylor":
        if gradients is None:
            raise ValueError("taylor needs gradients")
        return {name: taylor(state, gradients, model.config, model.layout, known[name]) for name in chosen}
    if statistics is None:
        raise ValueError(f"{score} needs statistics")
    streams = [name for name in chosen if known[name].kind == "stream"]
    found: Scores = score_units(model, "taylor", gradients=gradients, names=streams) if streams else {}
    for name in chosen:
        if name in found:
            continue
        units = feature_units(model.config, model.layout, known[name]).of_unit
        weight = state[f"{folding_layer(known[name])}.weight"].detach().double().cpu().numpy()
        gram = statistics[name].gram
        if not np.isfinite(gram).all():
            raise CoreError(f"Activations of {name} are not finite: the model is damaged.", code="not_finite", given=name)
        found[name] = {"wanda": wanda, "qr": pivoted_qr, "obs": obs}[score](weight, gram, units)
    return found


LEAST_LIVE = 1e-200
"""What a unit with weights scores at least: above zero, and no denormal number, which a worker flushes."""


def rank_zeros_last(scores: Scores, state: Mapping[str, Tensor], config: DCAEConfig, layout: Layout) -> Scores:
    """The scores with units that are entirely zero at 0 and all others above: a masked unit goes first, whatever the score.

    Entirely zero are all of a unit's parameters, biases and norms among them. Scores are not negative.
    """

    def size(name: str) -> Tensor | None:
        return None if "running_" in name else state[name].detach().double().abs()

    found = {}
    for name, own in scores.items():
        weights = _sum_by_unit(size, config, layout, sites(config)[name])
        found[name] = np.where(weights == 0, 0.0, np.maximum(own, LEAST_LIVE))
    return found


def sliced_norm(state: Mapping[str, Tensor], config: DCAEConfig, layout: Layout, site: Site, p: int) -> np.ndarray:
    """L1 or L2 norm of each unit's weights (biases left out, as torch-pruning does), by the slices of `units.py`."""
    weights = _weights(state)

    def power(name: str) -> Tensor | None:
        return weights[name].detach().double().abs() ** p if name in weights else None

    total = _sum_by_unit(power, config, layout, site)
    return np.sqrt(total) if p == 2 else total


def taylor(
    state: Mapping[str, Tensor], gradients: Mapping[str, Tensor], config: DCAEConfig, layout: Layout, site: Site
) -> np.ndarray:
    """Absolute first-order change of the loss when a unit's weights vanish: |sum of gradient x weight|."""

    def product(name: str) -> Tensor | None:
        return (state[name] * gradients[name]).detach().double() if name in gradients else None

    return np.abs(_sum_by_unit(product, config, layout, site))


def lamp(norms: np.ndarray) -> np.ndarray:
    """Squared norm over the sum of the squared norms that are not smaller: comparable over sites."""
    order = np.argsort(norms, kind="stable")
    squares = norms[order] ** 2
    above = np.cumsum(squares[::-1])[::-1]
    found = np.empty_like(squares)
    found[order] = squares / np.maximum(above, np.finfo(np.float64).tiny)
    return found


def fpgm(vectors: np.ndarray) -> np.ndarray:
    """Sum of the distances from each row of `(units, weights)` to all the others."""
    squares = (vectors**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * vectors @ vectors.T
    return np.sqrt(np.maximum(distances, 0)).sum(axis=1)


def wanda(weight: np.ndarray, gram: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Norm of what each unit adds to the folding layer's output if channels were uncorrelated; weight `(O, F, k, k)`."""
    columns = (weight**2).sum(axis=(0, 2, 3)) * np.diag(gram)
    return np.sqrt(columns[units].sum(axis=1))


def pivoted_qr(weight: np.ndarray, gram: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Units in the order in which a column-pivoted QR of the activations takes them; units of several channels by their first."""
    import scipy.linalg  # half a second: only where it is asked for

    pivots = scipy.linalg.qr(_root(gram), mode="r", pivoting=True)[1]
    rank = np.empty(len(pivots))
    rank[pivots] = np.arange(len(pivots), 0, -1)
    return rank[units].max(axis=1)


def obs(weight: np.ndarray, gram: np.ndarray, units: np.ndarray, ridge: float = 1e-4) -> np.ndarray:
    """Mean squared change of the folding layer's output at which each unit is eliminated, in the best order found greedily.

    Removing the channels q costs `tr(W_q ([H^-1]_qq)^-1 W_q^T)` once the others take over what they can, H being the Gram matrix
    with a ridge; W and H^-1 are then those of the smaller problem. Of W only `W^T W` is needed.
    """
    count, per_unit = units.shape
    features = weight.shape[1]
    flat = torch.from_numpy(weight.transpose(0, 2, 3, 1).reshape(-1, features).astype(np.float64))
    moments = torch.from_numpy(np.asarray(gram, dtype=np.float64))
    strength = ridge * max(float(moments.diagonal().mean()), 1e-30)
    inverse = torch.linalg.inv(moments + strength * torch.eye(features, dtype=torch.float64))
    product = flat.T @ flat
    places, names = torch.from_numpy(units.astype(np.int64)), np.arange(count)
    alive = np.ones(count, dtype=bool)
    found, reached = np.zeros(count), 0.0
    for _ in range(count - 1):
        if alive.mean() < SHRINK_AT:
            # What is gone leaves the matrices now and then: each step costs their size.
            left = places[torch.from_numpy(alive)].reshape(-1)
            inverse, product = (m.index_select(0, left).index_select(1, left) for m in (inverse, product))
            names, alive = names[alive], np.ones(int(alive.sum()), dtype=bool)
            places = torch.arange(len(left)).reshape(-1, per_unit)
        blocks = inverse[places[:, :, None], places[:, None, :]]
        blocks[torch.from_numpy(~alive)] = torch.eye(per_unit, dtype=torch.float64)
        cores = blocks.reciprocal() if per_unit == 1 else torch.linalg.inv(blocks)
        costs = (cores * product[places[:, :, None], places[:, None, :]].transpose(1, 2)).sum((1, 2)).numpy()
        costs[~alive] = np.inf
        unit = int(np.argmin(costs))
        reached += max(float(costs[unit]), 0.0)
        found[names[unit]] = reached
        alive[unit] = False
        q = places[unit]
        _eliminate(inverse, product, q, cores[unit])
    found[names[alive]] = np.nextafter(reached, np.inf)
    return found


def _eliminate(inverse: Tensor, product: Tensor, q: Tensor, core: Tensor) -> None:
    """H^-1 and W^T W without the channels q, in place: W <- W - W_q change^T, with change = [H^-1]_:q core."""
    columns = inverse[:, q].clone()
    change = columns @ core
    inverse.addmm_(change, columns.T, alpha=-1)
    taken = product[:, q] - 0.5 * change @ product[q[:, None], q]
    product.addmm_(taken, change.T, alpha=-1).addmm_(change, taken.T, alpha=-1)
    for matrix in (inverse, product):
        matrix[q, :] = 0.0
        matrix[:, q] = 0.0


def _root(gram: np.ndarray) -> np.ndarray:
    """R with R^T R = gram: its columns have the angles and lengths of the activations."""
    values, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def unit_vectors(state: Mapping[str, Tensor], config: DCAEConfig, layout: Layout, site: Site) -> np.ndarray:
    """`(units, weights)`: all the weights that go with each unit in a row."""
    units = layout.width(site)
    found = []
    for part in unit_slices(config, layout, site, range(units)):
        if state[part.tensor].ndim < 2:
            continue
        value = state[part.tensor].detach().double().cpu().index_select(part.dim, torch.from_numpy(part.indices))
        flat = value.movedim(part.dim, 0).reshape(len(part.indices), -1)
        order = torch.argsort(_unit_of(part, site, config, units), stable=True)
        found.append(flat[order].reshape(units, -1))
    return torch.cat(found, dim=1).numpy()


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of convolutions; norms are of another scale."""
    return {name: value for name, value in state.items() if name.endswith(".weight") and value.ndim > 1}


def _sum_by_unit(value_of: Callable[[str], Tensor | None], config: DCAEConfig, layout: Layout, site: Site) -> np.ndarray:
    """Sum of the values that go with each unit; `value_of` a parameter is None where it is left out."""
    units = layout.width(site)
    total = torch.zeros(units, dtype=torch.float64)
    for part in unit_slices(config, layout, site, range(units)):
        value = value_of(part.tensor)
        if value is None:
            continue
        rows = value.movedim(part.dim, 0)
        sums = rows.reshape(len(rows), -1).sum(dim=1).cpu()
        total.index_add_(0, _unit_of(part, site, config, units), sums[torch.from_numpy(part.indices)])
    return total.numpy()


def _unit_of(part: Slice, site: Site, config: DCAEConfig, units: int) -> Tensor:
    """The unit that each index of a slice over all units belongs to."""
    places = np.arange(len(part.indices))
    if site.kind == "stream":
        return torch.from_numpy(places // (len(places) // units))
    if site.kind != "heads":
        return torch.from_numpy(places % units)
    # A head's rows of q, k and v lie together; the columns of proj repeat the heads once for each scale.
    dim = config.coder(site.coder).head_dim
    return torch.from_numpy(places // (3 * dim if part.dim == 0 else dim) % units)


def resblock_scores(block: Any) -> np.ndarray:
    """L2 norm of each middle channel of a ResBlock, by torch-pruning."""
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
