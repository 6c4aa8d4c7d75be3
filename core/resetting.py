"""What a reset takes hold of: the tensors under the named parts or layers, and the model that the new weights come from. No torch.

The service asks before a job is queued, the job asks again of what it has loaded: the same words either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.checks import weights_path
from core.errors import CoreError
from core.specs import ResetSpec
from core.stored_weights import StoredWeights
from store import ModelRow, Store, baseline_of, get_model

Shapes = Mapping[str, Sequence[int]]


def stored_shapes(store: Store, row: ModelRow) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a model, from its file's header. Raises CoreError where the weights were cleaned away."""
    weights = StoredWeights(weights_path(store, row))
    return {name: weights.shape(name) for name in weights.names}


def layer_names(shapes: Shapes) -> tuple[str, ...]:
    """Every layer that has tensors, by name."""
    return tuple(sorted({name.rsplit(".", 1)[0] for name in shapes}))


def chosen_tensors(shapes: Shapes, spec: ResetSpec) -> list[str]:
    """Names of the tensors under the spec's parts or layers; raises CoreError for a layer or a unit that the model has not."""
    found: list[str] = []
    for layer in spec.layers:
        own = [name for name in shapes if name.startswith(f"{layer}.")]
        if not own:
            raise CoreError(
                f"The model has no layer {layer!r}.", code="layer", given=layer, legal=list(layer_names(shapes)),
                next="Parts of these names are legal too, such as decoder.stages.0.",
            )  # fmt: skip
        found += own
    for name in found:
        if spec.units and len(shapes[name]) > 0 and max(spec.units) >= shapes[name][0]:
            raise CoreError(
                f"{name} has {shapes[name][0]} units.", code="units", given=max(spec.units), legal=f"0 to {shapes[name][0] - 1}"
            )
    return sorted(set(found))


def older(store: Store, row: ModelRow, spec: ResetSpec) -> ModelRow | None:
    """The ancestor that the new weights come from, None for random ones; raises CoreError for a model that has none."""
    if spec.to == "random":
        return None
    if row.parent_id is None:
        raise CoreError(f"{row.name} is a baseline: there are no older weights.", code="no_parent", legal="random")
    return get_model(store, row.parent_id) if spec.to == "parent" else baseline_of(store, row.id)
