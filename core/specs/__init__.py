"""Specs: what a job is asked to do, one pydantic model per operation. See `core.specs.base`."""

from __future__ import annotations

from core.specs.base import SPEC_VERSION, DataSpec, DType, Spec
from core.specs.importing import ImportSpec
from core.specs.measuring import BenchmarkSpec, EvaluateSpec, InspectSpec, ProfileSpec, SensitivitySpec
from core.specs.pruning import (
    CALIBRATED_SCORES,
    LEAST_RATE,
    METHOD_TITLES,
    MOST_RATE,
    MOST_ROUNDS,
    RATED_METHODS,
    STRUCTURED_METHODS,
    UNSTRUCTURED_METHODS,
    PruneMethod,
    PruneSpec,
    ScheduleSpec,
    UnitScore,
)
from core.specs.running import ActivationsSpec, DataRunSpec, InferSpec
from core.specs.shipping import MOST_RECONSTRUCTING, ExportSpec, ReconstructSpec, ReproduceSpec
from core.specs.training import BranchSpec, ResetSpec, RetrainSpec

SPECS: dict[str, type[Spec]] = {
    spec.operation: spec
    for spec in (
        ImportSpec,
        PruneSpec,
        RetrainSpec,
        BranchSpec,
        ResetSpec,
        InspectSpec,
        EvaluateSpec,
        BenchmarkSpec,
        SensitivitySpec,
        ProfileSpec,
        ReproduceSpec,
        ExportSpec,
        ReconstructSpec,
        DataRunSpec,
        InferSpec,
        ActivationsSpec,
    )
}


__all__ = [
    "ActivationsSpec",
    "BenchmarkSpec",
    "BranchSpec",
    "CALIBRATED_SCORES",
    "DType",
    "DataRunSpec",
    "DataSpec",
    "EvaluateSpec",
    "ExportSpec",
    "ImportSpec",
    "InferSpec",
    "InspectSpec",
    "LEAST_RATE",
    "METHOD_TITLES",
    "MOST_RATE",
    "MOST_RECONSTRUCTING",
    "MOST_ROUNDS",
    "ProfileSpec",
    "PruneMethod",
    "PruneSpec",
    "RATED_METHODS",
    "ReconstructSpec",
    "ReproduceSpec",
    "ResetSpec",
    "RetrainSpec",
    "SPECS",
    "SPEC_VERSION",
    "STRUCTURED_METHODS",
    "ScheduleSpec",
    "SensitivitySpec",
    "Spec",
    "UNSTRUCTURED_METHODS",
    "UnitScore",
]
