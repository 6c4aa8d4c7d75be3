"""What jobs do: each module has `run(spec, context) -> Outcome`. torch lives here, in the job's own process."""

from __future__ import annotations

import importlib
from typing import Any

from core.errors import CoreError

MODULES: dict[str, str] = {
    "import": "core.operations.import_",
    "prune": "core.operations.prune",
    "retrain": "core.operations.retrain",
    "branch": "core.operations.branch",
    "reset": "core.operations.reset",
    "inspect": "core.operations.inspect_",
    "evaluate": "core.operations.evaluate",
    "benchmark": "core.operations.benchmark",
    "sensitivity": "core.operations.sensitivity",
    "profile": "core.operations.profile",
    "reproduce": "core.operations.reproduce",
    "export": "core.operations.export",
    "reconstruct": "core.operations.reconstruct",
    "testrun": "core.operations.testrun",
    "infer": "core.operations.infer",
    "activations": "core.operations.activations",
}


def load(operation: str) -> Any:
    """The module of an operation; raises CoreError for one that there is not."""
    if operation not in MODULES:
        raise CoreError(f"There is no operation {operation!r}.", code="unknown_operation", given=operation, legal=sorted(MODULES))
    return importlib.import_module(MODULES[operation])
