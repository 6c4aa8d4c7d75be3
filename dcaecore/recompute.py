"""Gradient checkpointing: each stage's activations are computed again in the backward pass instead of kept (arXiv 1604.06174).

Slower by about a forward pass, and the same bits. The stages' `forward` is replaced on the instance, so names and state dict stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed_stages(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, the children of every list named `stages` are checkpointed where that is wanted."""
    lists = [module for name, module in model.named_modules() if name.split(".")[-1] == "stages"] if wanted else []
    stages = [stage for stages in lists for stage in stages.children()]
    for stage in stages:
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for stage in stages:
            del stage.forward  # what the class says
