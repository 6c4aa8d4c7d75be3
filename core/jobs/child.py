"""One job in its own process: claims nothing, runs the operation, and ends the job in one transaction."""

from __future__ import annotations

import logging
import os
import signal
import traceback
import warnings
from typing import Any

import psutil

import store.jobs as jobs
from core import operations
from core.errors import as_error
from core.operations.context import Cancelled, Context, Paused
from core.settings import Settings
from core.specs import SPECS
from store import open_store


class _LogHandler(logging.Handler):
    """Python's own log goes to the job's log."""

    def __init__(self, context: Context) -> None:
        super().__init__(logging.INFO)
        self.context = context

    def emit(self, record: logging.LogRecord) -> None:
        self.context.log(record.levelname.lower(), record.getMessage())


def run_job(settings_json: str, job_id: str) -> None:
    """The child's whole life. A user's mistake fails the job with its fields; anything else with its traceback too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = Settings.model_validate_json(settings_json)
    store = open_store(settings.home)
    job = jobs.get_job(store, job_id)
    jobs.set_running(store, job, os.getpid(), psutil.Process().create_time(), attempt=job.attempt)
    context = Context(store, job, settings)
    handler = _LogHandler(context)
    logging.getLogger().addHandler(handler)
    warnings.showwarning = lambda message, *_args, **_kwargs: context.log("warning", str(message))
    try:
        _run(context)
    except Paused:
        context.log("info", "Paused and off the device.")
    except Cancelled:
        jobs.cancelled(store, job, attempt=job.attempt)
        context.log("info", "Cancelled.")
    except Exception as error:  # the worker's boundary: whatever happened, the job says so
        fields = as_error(error)
        trace = traceback.format_exc()
        if fields is None:
            fields = {"code": "bug", "message": f"{type(error).__name__}: {error}", "given": None, "legal": None,
                      "next": "This is a bug of Offshoot or of a library: please report it with the log."}  # fmt: skip
            context.log("error", trace)
        context.log("error", fields["message"])
        jobs.fail(store, job, fields, trace, attempt=job.attempt)
    finally:
        logging.getLogger().removeHandler(handler)
        context.close()
        store.close()


def _run(context: Context) -> None:
    import torch

    # Threads inherit the mode of the one that starts them, so this comes before any work (see dcaecore.trainer).
    torch.set_flush_denormal(True)
    if context.settings.num_threads:
        torch.set_num_threads(context.settings.num_threads)
    job: Any = context.job
    spec = SPECS[job.operation].model_validate(job.spec)
    context.log("info", f"{job.operation} on {context.device} (attempt {job.attempt}).")
    outcome = operations.load(job.operation).run(spec, context)
    if context.poll() == "cancel":
        raise Cancelled
    jobs.complete(
        context.store,
        job,
        model=outcome.model,
        scores=outcome.scores,
        measurements=outcome.measurements,
        result=outcome.result,
        attempt=job.attempt,
    )
    context.log("info", "Done.")
