"""One job in its own process: claims nothing, runs the operation, and ends the job in one transaction."""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import signal
import traceback
import warnings
from pathlib import Path
from typing import Any

import psutil

import store as st
import store.jobs as jobs
from core import operations
from core.errors import as_error
from core.jobs.allocator import keep_memory
from core.jobs.ranks import become_torchrun
from core.operations.context import Cancelled, Context, Paused
from core.settings import Settings
from core.specs import SPECS

CRASH_NAME = "crash.txt"
_CHATTY = ("httpx", "httpcore", "urllib3", "filelock", "fsspec", "PIL", "asyncio")
"""Libraries that tell each request or file at level info."""


class _LogHandler(logging.Handler):
    """Python's own log goes to the job's log, with the traceback where there is one."""

    def __init__(self, context: Context) -> None:
        super().__init__(logging.INFO)
        self.context = context

    def emit(self, record: logging.LogRecord) -> None:
        self.context.log(record.levelname.lower(), self.format(record))


def main(settings_json: str, job_id: str) -> None:
    """The child's whole life: what belongs to a process of our own, then the job; or it becomes `torchrun`."""
    become_torchrun(settings_json, job_id)
    settle()
    run_job(settings_json, job_id)


def settle() -> None:
    """What holds for every process of a job, before any work: threads inherit the mode of the one that starts them (dcaecore.trainer)."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_flush_denormal(True)
    keep_memory()


def run_job(settings_json: str, job_id: str) -> None:
    """Runs a claimed job. A user's mistake fails it with its fields; anything else with its traceback too."""
    settings = Settings.model_validate_json(settings_json)
    store = st.open_store(settings.home)
    job = jobs.get_job(store, job_id)
    with (store.job_folder(job_id) / CRASH_NAME).open("w") as crash:
        faulthandler.enable(crash)
        jobs.set_running(store, job, os.getpid(), psutil.Process().create_time(), attempt=job.attempt)
        context = Context(store, job, settings)
        handler = _listen(context)
        try:
            _run(context)
        except Paused:
            context.log("info", "Paused and off the device.")
        except Cancelled:
            jobs.cancelled(store, job, attempt=job.attempt)
            context.log("info", "Cancelled.")
        except Exception as error:  # the worker's boundary: whatever happened, the job says so
            fields, trace = error_fields(error), traceback.format_exc()
            # The store first: on a full disk the log cannot be written.
            jobs.fail(store, job, fields, trace if fields["code"] == "bug" else None, attempt=job.attempt)
            context.log("error", trace if fields["code"] == "bug" else fields["message"])
        finally:
            logging.getLogger().removeHandler(handler)
            faulthandler.disable()
            context.close()
            store.close()


def crash_report(folder: Path) -> str | None:
    """Python's stack at the moment that a child's job (in this folder) died of SIGSEGV or the like; None for other ends."""
    path = folder / CRASH_NAME
    return (path.read_text(errors="replace").strip() or None) if path.exists() else None


def error_fields(error: Exception) -> dict[str, Any]:
    """What a job's error says: the user's mistake, the machine's limits (memory, disk), or else our bug."""
    known = as_error(error)
    if known is not None:
        return known
    text = str(error)
    fields: dict[str, Any] = {"given": None, "legal": None}
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        message = f"The memory is not enough: {text.splitlines()[0] if text else 'nothing is left'}"
        return {**fields, "code": "out_of_memory", "message": message, "next": "Take a smaller batch, image size or model."}
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in text:
        return {
            **fields,
            "code": "disk_full",
            "message": f"The disk is full: {text}",
            "next": "Free some space, then resume the job.",
        }
    return {
        **fields,
        "code": "bug",
        "message": f"{type(error).__name__}: {error}",
        "next": "This is a bug of Offshoot or of a library: please report it with the log.",
    }


def _listen(context: Context) -> _LogHandler:
    """Python's log and warnings go to the job's log from here on."""
    handler, root = _LogHandler(context), logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.showwarning = lambda message, category, *_args, **_kwargs: context.log("warning", f"{category.__name__}: {message}")
    return handler


def _run(context: Context) -> None:
    import torch

    if context.settings.num_threads:
        torch.set_num_threads(context.settings.num_threads)
    job: Any = context.job
    operation = operations.load(job.operation)
    spec = SPECS[job.operation].model_validate(job.spec)
    context.log("info", f"{job.operation} on {context.device} (attempt {job.attempt}).")
    outcome = operation.run(spec, context)
    context.log_system(now=True)
    if context.poll() == "cancel":
        raise Cancelled
    done = jobs.complete(
        context.store,
        job,
        model=outcome.model,
        scores=outcome.scores,
        measurements=outcome.measurements,
        # Sums depend on how many threads share them: who makes a model again must know.
        result={"threads": torch.get_num_threads(), **outcome.result},
        attempt=job.attempt,
    )
    if job.operation == "import" and done.model_id and "current" not in st.aliases(context.store):
        # The first model becomes the current one, whoever asked for it and however.
        st.set_alias(context.store, "current", done.model_id)
    context.log("info", "Done.")
