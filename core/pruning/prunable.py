"""Which tensors can be pruned, and which of them 2:4: told by names and shapes, so before anything runs. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from core.errors import CoreError
from core.specs import PruneSpec
from dcaecore.sparse import GROUP

Shapes = Mapping[str, tuple[int, ...]]


def prunable(shapes: Shapes, part: str = "both") -> list[str]:
    """The weights of convolutions and linear layers of `part`, in name order; no biases, no norms."""
    return sorted(
        name
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) >= 2 and (part == "both" or name.startswith(part))
    )


def unfit(shapes: Shapes, part: str = "both") -> list[str]:
    """Prunable tensors whose input channels do not divide by four: depthwise convolutions, one that reads RGB."""
    return [name for name in prunable(shapes, part) if shapes[name][1] % GROUP]


def check_two_four(shapes: Shapes, spec: PruneSpec) -> list[str]:
    """The unfit tensors, which stay whole; raises CoreError(unfit_layers) that names them, unless the spec skips them."""
    found = unfit(shapes, spec.part)
    if found and not spec.skip_unfit:
        raise CoreError(
            f"{len(found)} layers cannot be pruned 2:4, for their input channels do not divide by four: "
            f"{', '.join(found[:3])}{' and others' if len(found) > 3 else ''}.",
            code="unfit_layers",
            given=found,
            legal="input channels that divide by four",
            next="Set skip_unfit, and they stay whole.",
        )
    return found
