"""Reset: parts or layers of a model get new random weights, or those that an ancestor has. The rest stays to the bit."""

from __future__ import annotations

import torch

from core.errors import CoreError
from core.names import model_name
from core.operations.context import Context, Outcome
from core.operations.models import load, new_model
from core.resetting import chosen_tensors, older
from core.specs import ResetSpec
from dcaecore import DCAE


def run(spec: ResetSpec, context: Context) -> Outcome:
    """Raises CoreError for a layer that the model has not, for units out of range, and for an ancestor of other widths."""
    if context.job.parent_model_id is None:
        raise CoreError("A reset needs a model.", code="no_parent")
    parent = load(context.store, context.job.parent_model_id)
    state = {name: value.clone() for name, value in parent.model.state_dict().items()}
    chosen = chosen_tensors({name: tuple(value.shape) for name, value in state.items()}, spec)
    row = older(context.store, parent.row, spec)
    if row is None:
        torch.manual_seed(spec.seed)
        source = DCAE(parent.model.config, parent.model.layout).state_dict()
    else:
        source = load(context.store, row.id).model.state_dict()
    for name in chosen:
        if source[name].shape != state[name].shape:
            raise CoreError(
                f"{name} is narrower than the {spec.to}'s: those weights do not fit.", code="shape",
                given=list(state[name].shape), legal=list(source[name].shape), next="Reset it to random weights instead.",
            )  # fmt: skip
        _put(state[name], source[name], spec.units)
    context.log("info", f"{len(chosen)} tensors were reset.")
    made = new_model(
        context.store,
        name=context.job.name if context.job.name != "reset" else model_name(parent.row.family, "reset"),
        kind="retrained",
        spec=spec,
        state=state,
        config=parent.model.config,
        layout=parent.model.layout,
        masks=parent.masks,
        parents=[("parent", parent.row.id)],
    )
    return Outcome(model=made, result={"tensors": chosen})


def _put(target: torch.Tensor, source: torch.Tensor, units: tuple[int, ...]) -> None:
    """All of a tensor, or the rows of its output units."""
    if not units or target.ndim == 0:
        target.copy_(source)
        return
    rows = torch.tensor(units)
    target[rows] = source[rows]
