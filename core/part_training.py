"""Retrainings of which only the first steps are wanted: to that step and no further, for a model of the checkpoint there. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import store.jobs as jobs
from core.checks import SpecLike, checked
from core.errors import CoreError
from core.names import model_name
from core.specs import RetrainSpec
from store import JobRow, Store

Parent = str | Mapping[str, str]


class PartTraining:
    """The part of `ModelManager` that trains up to a step; `branch` makes a model of what is there then."""

    store: Store
    _submit: Callable[..., JobRow]
    _check_retraining: Callable[..., None]
    _with_losses: Callable[..., RetrainSpec]
    control: Callable[..., JobRow]
    wait: Callable[..., JobRow]

    def retrain_to(
        self, parent: Parent, spec: SpecLike, step: int, *, device: str | None = None, name: str | None = None
    ) -> JobRow:
        """Submits a retraining that pauses once `step` steps are done; at its last step it is done instead.

        The schedule is that of the whole training. Raises CoreError as `retrain_model` does, and for a step that it does not have.
        """
        given = self._with_losses(parent, checked(RetrainSpec, spec))
        if not 0 <= step <= given.total_steps:
            raise CoreError(
                f"The training has {given.total_steps} steps, so it cannot end at step {step}.",
                code="steps", given=step, legal=f"0 to {given.total_steps}",
            )  # fmt: skip
        self._check_retraining(parent, given, device)
        pause_step = step if step < given.total_steps else None
        return self._submit(given, parent, device=device, name=name or model_name("dcae", "retrained"), pause_step=pause_step)

    def end_at_pause(self, ref: str, timeout_s: float | None = None) -> JobRow:
        """Waits until a job pauses and ends it there, its checkpoints kept; a job that is done is left as it is.

        Raises CoreError as `wait` does where it failed.
        """
        started = time.monotonic()
        while True:
            row = jobs.get_job(self.store, ref)
            if row.state == "cancelled":
                return row
            if row.state in ("done", "failed"):
                return self.wait(row.id)
            if row.state == "paused":
                self.control(row.id, "cancel")
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise CoreError(f"{row.name} is {row.state} after {timeout_s:.0f} s.", code="timeout", given=row.id)
            time.sleep(0.05)
