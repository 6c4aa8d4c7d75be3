"""Import: weights from elsewhere become a baseline."""

from __future__ import annotations

import torch

from core.names import model_name
from core.operations.context import Context, Outcome
from core.operations.models import new_model
from core.specs import ImportSpec
from dcaecore import DCAE, VARIANTS, from_pretrained


def run(spec: ImportSpec, context: Context) -> Outcome:
    """Reads `spec.source`; a zoo name with `random_seed` is built with random weights instead."""
    masks = {}
    if spec.random_seed is not None and spec.source in VARIANTS:
        torch.manual_seed(spec.random_seed)
        model = DCAE(VARIANTS[spec.source])
        variant, notes = spec.source, ["random weights"]
    else:
        found = from_pretrained(spec.source, revision=spec.revision)
        model, masks, variant, notes = found.model, found.masks, found.variant or "dcae", found.notes
    context.log("info", f"{variant}: {sum(p.numel() for p in model.parameters()):,} parameters.")
    for note in notes:
        context.log("info", note)
    made = new_model(
        context.store,
        name=context.job.name if context.job.name != "import" else model_name("dcae", variant),
        kind="baseline",
        spec=spec,
        state=model.state_dict(),
        config=model.config,
        layout=model.layout,
        masks=masks,
    )
    return Outcome(model=made, result={"variant": variant, "notes": notes})
