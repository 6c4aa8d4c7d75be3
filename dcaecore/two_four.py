"""2:4 semi-structured weights on sparse tensor cores: 1x1 convolutions as products with packed weights.

Of each four consecutive input channels of a weight at most two are not zero (N:M sparsity, arXiv 2104.08378); NVIDIA GPUs of compute
capability 8.0 and newer multiply such matrices at up to twice the dense rate (arXiv 2104.08378, section 2). `torch.sparse` packs them
(cuSPARSELt, else CUTLASS); 3x3 convolutions have no such kernel. For inference: a packed weight cannot be trained, moved or saved.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcaecore.errors import ConfigError
from dcaecore.sparse import GROUP, KEPT

ROWS, COLUMNS = 32, 64
"""Output and input channels are multiples of these: the strictest that torch's two backends ask for in 16 bits."""
DTYPES = (torch.bfloat16, torch.float16)


class TwoFourConv2d(nn.Module):
    """A 1x1 convolution whose weight is packed; `(B, I, H, W)` to `(B, O, H, W)`, channels last in memory."""

    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight_OI = torch.sparse.to_sparse_semi_structured(conv.weight.detach().flatten(1).contiguous())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x_BIHW: Tensor) -> Tensor:
        batch, _, height, width = x_BIHW.shape
        tokens_NI = x_BIHW.movedim(1, -1).flatten(0, 2)
        return F.linear(tokens_NI, self.weight_OI, self.bias).unflatten(0, (batch, height, width)).movedim(-1, 1)


def is_two_four(weight: Tensor) -> bool:
    """Whether each four input channels of `(O, I, ...)` have two zeros at least."""
    if weight.ndim < 2 or weight.shape[1] % GROUP:
        return False
    return bool(((weight != 0).unflatten(1, (-1, GROUP)).sum(2) <= KEPT).all())


def packable(model: nn.Module) -> list[str]:
    """Names of the convolutions that `pack` replaces: plain 1x1, 2:4 already, of widths that the kernels take."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.groups == 1
        and layer.out_channels % ROWS == 0
        and layer.in_channels % COLUMNS == 0
        and is_two_four(layer.weight)
    ]


@torch.no_grad()
def pack(model: nn.Module) -> list[str]:
    """Replaces the packable convolutions of a model that is on its GPU in its dtype; returns their names, of which there may be none.

    Raises ConfigError where torch has no kernel for the device or the dtype.
    """
    names = packable(model)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        if layer.weight.dtype not in DTYPES:
            raise ConfigError(
                f"Sparse tensor cores do not multiply {_short(layer.weight.dtype)}.", code="no_sparse_kernels",
                given=_short(layer.weight.dtype), legal=[_short(dtype) for dtype in DTYPES],
            )  # fmt: skip
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in prototype stage.*")
                packed = TwoFourConv2d(layer)
                packed(layer.weight.new_zeros(1, layer.in_channels, 1, 8))  # one backend packs where it cannot multiply
        except RuntimeError as error:
            raise ConfigError(
                f"This torch has no kernels for 2:4 weights on {layer.weight.device}: {str(error).splitlines()[0]}",
                code="no_sparse_kernels", given=str(layer.weight.device), legal="CUDA, compute capability 8.0 or newer",
            ) from error  # fmt: skip
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, packed)
    return names


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the packed weights: the values that are left, and where they stand."""
    inside = [layer.weight_OI for layer in model.modules() if isinstance(layer, TwoFourConv2d)]
    return sum(
        part.numel() * part.element_size()
        for weight in inside
        for part in (getattr(weight, "packed", None), getattr(weight, "meta", None))
        if part is not None
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
