"""Branch: a model made of a checkpoint of a retraining, which goes on as if nothing had happened."""

from __future__ import annotations

import json

import store.jobs as jobs
from core.errors import CoreError
from core.names import model_name
from core.operations.context import Context, Outcome
from core.operations.models import load, new_model
from core.operations.retrain import DATASET_NAME, teacher_row
from core.specs import BranchSpec, RetrainSpec
from dcaecore import load_checkpoint
from store import checkpoints


def run(spec: BranchSpec, context: Context) -> Outcome:
    """Raises CoreError where the checkpoint is gone, or holds no best weights yet; CheckpointError where it is damaged."""
    training = jobs.get_job(context.store, spec.job)
    found = [
        row for row in checkpoints.list_checkpoints(context.store, training) if row.step == spec.step and row.folder.is_dir()
    ]
    if not found or context.job.parent_model_id is None:
        raise CoreError(f"The checkpoint of step {spec.step} is not there any more.", code="no_checkpoint", given=spec.step)
    saved = load_checkpoint(found[0].folder)
    state = saved.best if spec.weights == "best" else saved.ema or saved.model
    if not state:
        raise CoreError(
            f"Until step {spec.step} nothing was validated, so there are no best weights.",
            code="no_best", given=spec.weights, legal="trained",
        )  # fmt: skip
    parent = load(context.store, context.job.parent_model_id)
    teacher = teacher_row(RetrainSpec.model_validate(training.spec), context.store, parent.row.id)
    dataset = context.store.job_folder(training.id) / DATASET_NAME
    step = saved.facts["best_step"] if spec.weights == "best" else spec.step
    context.log("info", f"The weights of step {step} of {training.name}.")
    made = new_model(
        context.store,
        name=context.job.name if context.job.name != "branch" else model_name(parent.row.family, f"retrained-step{step}"),
        kind="retrained",
        spec=spec,
        state=state,
        config=parent.model.config,
        layout=parent.model.layout,
        masks=parent.masks,
        parents=[("parent", parent.row.id), *([] if teacher is None else [("teacher", teacher.id)])],
        dataset=json.loads(dataset.read_text()) if dataset.exists() else None,
    )
    return Outcome(model=made, result={"step": step, "job": training.id, "threads": saved.facts["threads"]})
