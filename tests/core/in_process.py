"""Operations run in the test's own process, through a real store, without a worker."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import psutil
import torch

import store.jobs as jobs
from core import operations
from core.operations.context import Cancelled, Context, Paused
from core.operations.models import new_model
from core.settings import Settings
from core.specs import SPECS, ImportSpec
from dcaecore import DCAE, VARIANTS, DCAEConfig
from store import JobRow, ModelRow, add_model, open_store


class InProcess:
    """A store, and jobs that run at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.store = settings, open_store(settings.home)

    def add(self, config: DCAEConfig = VARIANTS["tiny"], *, seed: int = 0, name: str = "tiny", masks=None) -> ModelRow:
        """A baseline with random weights; masked weights are zero."""
        torch.manual_seed(seed)
        model = DCAE(config)
        state = {k: v * masks[k] if masks and k in masks else v for k, v in model.state_dict().items()}
        spec = ImportSpec(source="tiny", random_seed=seed)
        made = new_model(
            self.store, name=name, kind="baseline", spec=spec, state=state, config=config, layout=model.layout, masks=masks
        )
        return add_model(self.store, made)

    def submit(self, operation: str, parent: str | None = None, **fields: Any) -> JobRow:
        spec = SPECS[operation].model_validate(fields)
        return jobs.submit(self.store, operation, spec.model_dump(mode="json"), parent=parent, device="cpu")

    def claim(self) -> JobRow:
        """The next queued job, running as this process."""
        job = jobs.claim(self.store, "cpu", "test")
        assert job is not None
        return jobs.set_running(self.store, job, os.getpid(), psutil.Process().create_time())

    def perform(self, job: JobRow, context_type: type[Context] = Context) -> JobRow:
        """Runs a claimed job as the child does, and ends it; errors fail the job and are raised."""
        context = context_type(self.store, job, self.settings)
        try:
            outcome = operations.load(job.operation).run(SPECS[job.operation].model_validate(job.spec), context)
        except Paused:
            return jobs.get_job(self.store, job.id)
        except Cancelled:
            return jobs.cancelled(self.store, job)
        except Exception as error:
            jobs.fail(self.store, job, {"code": "x", "message": str(error)})
            raise
        finally:
            context.close()
        return jobs.complete(
            self.store,
            job,
            model=outcome.model,
            scores=outcome.scores,
            measurements=outcome.measurements,
            result=outcome.result,
        )

    def run(self, operation: str, parent: str | None = None, **fields: Any) -> JobRow:
        """Submit, claim, run, complete."""
        self.submit(operation, parent, **fields)
        return self.perform(self.claim())

    def log(self, job: JobRow) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.store.job_folder(job.id) / "log.jsonl").read_text().splitlines()]


class Inline:
    """Stands for the worker: what is queued runs at once, in this process."""

    def __init__(self, settings):
        self.bench, self.starts, self.at_work = InProcess(settings), [], True

    def __call__(self, _store, _settings, device):
        self.starts.append(device)
        while self.at_work and (job := jobs.claim(self.bench.store, device, "test")) is not None:
            running = jobs.set_running(self.bench.store, job, os.getpid(), psutil.Process().create_time())
            with contextlib.suppress(Exception):  # the job says it
                self.bench.perform(running)
