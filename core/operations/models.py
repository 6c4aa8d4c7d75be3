"""Between the store and modules: a stored model as a module, and a state dict as a model to be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.checks import weights_path
from core.pruning.masks import apply_masks
from core.specs import SPEC_VERSION, Spec
from dcaecore import DCAE, DCAEConfig, Layout, estimate, load_model, save_model, weights_digest
from store import ModelRow, NewModel, Store, baseline_of, get_model

FACTS_IMAGE_SIZE = 128


@dataclass
class Loaded:
    """A stored model, ready to run on a device."""

    row: ModelRow
    model: DCAE
    masks: dict[str, Tensor]


def load(store: Store, ref: str, device: str = "cpu") -> Loaded:
    """Reads a model's weights; raises StoreError for an unknown or cleaned-away one, and for a file that was changed on disk."""
    row = get_model(store, ref)
    loaded = load_model(weights_path(store, row, whole=True), device=device)
    return Loaded(row, loaded.model, loaded.masks)


def new_model(
    store: Store,
    *,
    name: str,
    kind: str,
    spec: Spec,
    state: Mapping[str, Tensor],
    config: DCAEConfig,
    layout: Layout,
    masks: Mapping[str, Tensor] | None = None,
    parents: Sequence[tuple[str, str]] = (),
    dataset: Mapping[str, Any] | None = None,
    note: str = "",
) -> NewModel:
    """Writes the weights to the blob folder, masked ones at zero, and describes the model; the job's end stores it."""
    state = apply_masks(state, masks or {})
    scratch = store.blobs.scratch(".safetensors")
    save_model(scratch, state, config=config, layout=layout, masks=masks)
    size = scratch.stat().st_size
    digest = store.blobs.put_file(scratch, move=True)
    baseline = baseline_of(store, parents[0][1]).facts.get("parameters") if parents else None
    return NewModel(
        name=name,
        kind=kind,
        family="dcae",
        config=config.to_json(),
        layout=layout.to_json(),
        spec=spec.identity_spec(),
        weights_digest=weights_digest(state, masks),
        blob_digest=digest,
        bytes=size,
        parents=parents,
        dataset_identity=dataset,
        note=note,
        facts=facts(state, config, layout, baseline_parameters=baseline, file_bytes=size),
        spec_version=SPEC_VERSION,
    )


def facts(
    state: Mapping[str, Tensor],
    config: DCAEConfig,
    layout: Layout,
    *,
    baseline_parameters: float | None,
    file_bytes: int,
) -> dict[str, float]:
    """Figures known without running the model. `sparsity` is zeros / all; `pruning_ratio` is removed / all of the baseline's."""
    size = max(FACTS_IMAGE_SIZE, config.spatial_compression)
    cost = estimate(config, layout, image_size=size)
    weights = {k: v for k, v in state.items() if "running_" not in k and "num_batches" not in k}
    total = sum(v.numel() for v in weights.values())
    nonzero = sum(int((v != 0).sum()) for v in weights.values())
    return {
        "parameters": total,
        "nonzero_parameters": nonzero,
        "sparsity": 1.0 - nonzero / total,
        "pruning_ratio": 0.0 if baseline_parameters is None else 1.0 - total / baseline_parameters,
        "encode_macs": cost.encode_macs,
        "decode_macs": cost.decode_macs,
        "macs_image_size": size,
        "weight_bytes": file_bytes,
    }
