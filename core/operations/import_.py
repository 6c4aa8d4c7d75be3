"""Import: weights from elsewhere become a baseline."""

from __future__ import annotations

from pathlib import Path

import torch

from core.errors import CoreError
from core.names import model_name
from core.operations.context import Context, Outcome
from core.operations.models import new_model
from core.specs import ImportSpec
from dcaecore import DCAE, HUB_IDS, VARIANTS, Pretrained, from_pretrained


def run(spec: ImportSpec, context: Context) -> Outcome:
    """Reads `spec.source`; a zoo name with `random_seed` is built with random weights instead.

    Raises CheckpointError for what is no whole DC-AE, CoreError for options that do not apply to the source.
    """
    found = _read(spec)
    variant = found.variant or "dcae"
    context.log("info", f"{variant}: {sum(p.numel() for p in found.model.parameters()):,} parameters.")
    for note in found.notes:
        context.log("info", note)
    made = new_model(
        context.store,
        name=context.job.name if context.job.name != "import" else model_name("dcae", variant),
        kind="baseline",
        spec=spec,
        state=found.model.state_dict(),
        config=found.model.config,
        layout=found.model.layout,
        masks=found.masks,
    )
    result = {"variant": found.variant, "key_format": found.key_format, "notes": found.notes, "masks": len(found.masks)}
    return Outcome(model=made, result=result)


def _read(spec: ImportSpec) -> Pretrained:
    here = spec.source == "demo" or Path(spec.source).expanduser().exists()
    if spec.revision is not None and (here or spec.random_seed is not None):
        raise CoreError(
            "A revision belongs to a Hugging Face model.",
            given=spec.revision,
            legal="no revision",
            next="Leave the revision empty, or give a Hugging Face id as the source.",
        )
    if spec.random_seed is not None:
        if spec.source not in VARIANTS:
            raise CoreError(
                "Random weights can be had for the zoo's shapes only.",
                given=spec.source,
                legal=sorted(VARIANTS),
                next="Leave random_seed empty to read weights from this source.",
            )
        torch.manual_seed(spec.random_seed)
        model = DCAE(VARIANTS[spec.source])
        return Pretrained(model, spec.source, "offshoot", notes=[f"random weights from seed {spec.random_seed}"])
    if spec.source in VARIANTS and spec.source not in HUB_IDS and not here:
        raise CoreError(
            f"No weights of {spec.source} are published under that name.",
            code="no_file",
            given=spec.source,
            legal=sorted(HUB_IDS),
            next="Give random_seed to build it with random weights, or name a file; `demo` is the trained demo model.",
        )
    return from_pretrained(spec.source, revision=spec.revision)
