"""What jobs do: each module has `run(spec, context) -> Outcome`. torch lives here, in the job's own process."""

from __future__ import annotations

import importlib
from typing import Any

MODULES: dict[str, str] = {
    "import": "core.operations.import_",
    "prune": "core.operations.prune",
    "retrain": "core.operations.retrain",
    "evaluate": "core.operations.evaluate",
    "benchmark": "core.operations.benchmark",
}


def load(operation: str) -> Any:
    """The module of an operation."""
    return importlib.import_module(MODULES[operation])
