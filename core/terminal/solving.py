"""`solve --run`: prunes by a proposal, measures what was made, and sets it beside what was predicted."""

from __future__ import annotations

from core.model_manager import ModelManager
from core.planning import Proposal
from core.terminal import output
from store import ModelRow

Achieved = dict[str, tuple[float, float]]
"""Predicted figures' keys -> what the parent and what the model has."""


def prune_and_measure(manager: ModelManager, row: ModelRow, proposal: Proposal, *, quiet: bool) -> tuple[ModelRow, Achieved]:
    """The model, and what was achieved: counted exactly, or measured of both under the conditions that the prediction stands for,
    quality on test images."""
    pruned = output.follow(manager, manager.prune_model(row.id, proposal.spec), quiet=quiet)
    assert pruned.model_id is not None
    made = manager.get_model(pruned.model_id)
    seen, timed = manager.conditions(row.id)
    for ref in (row.id, made.id):
        output.follow(manager, manager.evaluate_model(ref, seen), quiet=quiet)
    output.follow(manager, manager.benchmark_models([row.id, made.id], timed), quiet=quiet)
    figures = manager.compare([row.id, made.id]).figures
    counted = [manager.cost(ref, image_size=timed.image_size) for ref in (row.id, made.id)]
    achieved = {}
    for key in proposal.solution.after:
        before, after = (
            getattr(cost, key, None) or figures[ref][key].value for cost, ref in zip(counted, (row.id, made.id), strict=True)
        )
        if before is not None and after is not None:
            achieved[key] = before, after
    return made, achieved
