"""Telling names: `{model_type}_{method}_{ratio asked}_{UTC time}`, such as `dcae_l2structured_0.50_20260214-153000`."""

from __future__ import annotations

from datetime import UTC, datetime

from core.specs import RATED_METHODS, PruneSpec


def model_name(family: str, what: str, ratio: float | None = None, *, when: datetime | None = None) -> str:
    """The name of a derived model or its job; `what` loses its underscores, so that the parts stay apart."""
    stamp = (when or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    parts = [family, what.replace("_", ""), *([] if ratio is None else [f"{ratio:.2f}"]), stamp]
    return "_".join(parts)


def pruned_name(family: str, spec: PruneSpec, part: str = "") -> str:
    """The name of a pruned model: method and score, `part` (such as a round of a schedule), and the ratio where one was asked for.

    Where a plan is applied again, `spec` is that of the pruning that chose its units.
    """
    what = f"{spec.score}structured" if spec.method == "structured" else spec.method
    return model_name(family, what + part, spec.rate if spec.method in RATED_METHODS else None)
