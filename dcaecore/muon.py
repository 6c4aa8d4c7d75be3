"""Muon: weight matrices move along the semi-orthogonal matrix nearest to their momentum, everything else by AdamW.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with decoupled decay and the scale of Liu et al. 2025
(arXiv 2502.16982), 0.2 sqrt(longer side), which makes an update as large as AdamW's: one learning rate serves both. The kernel of a
convolution, `(out, in, k, k)`, is the matrix `(out, in k k)`. torch.optim.Muon is the same for 2-D weights alone (a test holds the two
together). The first and the last convolution, depthwise ones and vectors go by AdamW, as the authors advise, and so does what is large:
an update of a matrix with the sides m <= n takes 2 m m n + 19 m^3 multiplications.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic that drives singular values to about 1; steep at 0, so they end between 0.7 and 1.2."""
NUM_STEPS = 5
ENDS = ("conv_in", "conv_out")


def is_hidden_matrix(name: str, weight: Tensor, max_side: int) -> bool:
    """Whether Muon moves a weight: a matrix or a kernel inside the model whose smaller side is at most `max_side`."""
    if weight.ndim < 2 or weight.shape[1] == 1 or any(end in name.split(".") for end in ENDS):
        return False
    return min(len(weight), weight[0].numel()) <= max_side


def orthogonalize(matrix: Tensor) -> Tensor:
    """A semi-orthogonal matrix near to `(m, n)`, by Newton and Schulz, in the matrix's own dtype.

    The steps X <- (a + b X X' + c (X X')^2) X are taken on X X' alone, whose side is the smaller one, and meet X once, at the end:
    for a 3x3 kernel as wide as it is deep 37 m^3 multiplications instead of 95 m^3. In bfloat16 that would lose too much.
    """
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    a, b, c = COEFFICIENTS
    gram = x @ x.T
    factor = None
    for _ in range(NUM_STEPS):
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        factor = step if factor is None else step @ factor
        gram = step @ gram @ step
    assert factor is not None
    x = factor @ x
    return x.T if tall else x


class Muon(torch.optim.AdamW):
    """Groups with `muon` set move by Muon, the others by AdamW; all take `lr` and `weight_decay`.

    An update mixes the elements of a matrix, so it moves weights whose own gradient is zero: masks must be applied after every step.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **settings: Any) -> None:
        super().__init__([{"muon": False, **group} for group in groups], **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        every = self.param_groups
        for group in every:
            for weight in group["params"] if group["muon"] else ():
                if weight.grad is not None:
                    self._move(weight, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = every

    def _move(self, weight: nn.Parameter, lr: float, decay: float) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
        update = orthogonalize(weight.grad.lerp(momentum, MOMENTUM).reshape(len(weight), -1))
        weight.mul_(1 - lr * decay).add_(update.reshape(weight.shape), alpha=-0.2 * lr * max(update.shape) ** 0.5)
