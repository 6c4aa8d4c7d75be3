"""One job in its own process: how each end is told. Here it runs in the test's process."""

from __future__ import annotations

import errno
import logging
import warnings
from types import SimpleNamespace

import pytest

import store as st
import store.jobs as jobs
from core import operations
from core.errors import CoreError
from core.jobs import child
from core.operations.context import Cancelled, Context, Outcome, Paused
from tests.core.in_process import InProcess


@pytest.fixture
def bench(settings, monkeypatch):
    """A store, with what a child sets for its whole process undone at the end."""
    monkeypatch.setattr(child, "faulthandler", SimpleNamespace(enable=lambda _file: None, disable=lambda: None))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    made = InProcess(settings)
    yield made
    assert root.handlers == handlers
    root.setLevel(level)
    made.store.close()


def run(bench, monkeypatch, operate, operation="import", **fields):
    """A claimed job whose operation is `operate(spec, context)`, run as the worker's child runs it."""
    monkeypatch.setattr(operations, "load", lambda _name: SimpleNamespace(run=operate))
    bench.submit(operation, **fields)
    job = jobs.claim(bench.store, "cpu", "test")
    child.run_job(bench.settings.model_dump_json(), job.id)
    return jobs.get_job(bench.store, job.id)


def raising(error):
    def operate(_spec, _context):
        raise error

    return operate


def test_the_first_import_becomes_current_and_the_second_does_not(bench):
    made = []
    for seed in (0, 1):
        bench.submit("import", source="tiny", random_seed=seed)
        job = jobs.claim(bench.store, "cpu", "test")
        child.run_job(bench.settings.model_dump_json(), job.id)
        made.append(jobs.get_job(bench.store, job.id).model_id)
    assert st.aliases(bench.store) == {"current": made[0]} and made[0] != made[1]
    lines = [line["message"] for line in bench.log(job)]
    assert lines[0] == "import on cpu (attempt 1)." and lines[-1] == "Done."


def test_a_users_mistake_fails_with_its_fields_and_no_traceback(bench, monkeypatch):
    error = CoreError("No such thing.", code="why", given=1, legal="2", next="Take 2.")
    job = run(bench, monkeypatch, raising(error))
    assert job.state == "failed" and job.pid is None
    assert job.error == {
        "code": "why", "message": "No such thing.", "given": 1, "legal": "2", "next": "Take 2.", "traceback": None,
    }  # fmt: skip
    assert [line for line in bench.log(job) if line["level"] == "error"][0]["message"] == "No such thing."


def test_a_bug_keeps_its_traceback_and_says_that_it_is_one(bench, monkeypatch):
    job = run(bench, monkeypatch, raising(KeyError("nowhere")))
    assert job.state == "failed" and job.error["code"] == "bug"
    assert "KeyError" in job.error["message"] and "report it" in job.error["next"]
    assert "raise error" in job.error["traceback"]
    assert any("raise error" in line["message"] for line in bench.log(job) if line["level"] == "error")


def test_an_operation_that_there_is_not(bench):
    job = jobs.submit(bench.store, "sharpen", {}, device="cpu")
    jobs.claim(bench.store, "cpu", "test")
    child.run_job(bench.settings.model_dump_json(), job.id)
    job = jobs.get_job(bench.store, job.id)
    assert job.error["code"] == "unknown_operation" and "prune" in job.error["legal"]


def test_a_log_that_cannot_be_written_hides_no_end(bench, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def log(_self, level, _message):
        if level == "error":
            raise full

    monkeypatch.setattr(Context, "log", log)
    with pytest.raises(OSError, match="No space"):
        run(bench, monkeypatch, raising(full))
    (job,) = jobs.list_jobs(bench.store)
    assert job.state == "failed" and job.error["code"] == "disk_full" and "resume" in job.error["next"]


def test_a_pause_and_a_cancel_are_no_failures(bench, monkeypatch):
    def pause(_spec, context):
        jobs.request(bench.store, context.job, "pause")
        jobs.paused(bench.store, context.job)
        assert jobs.release(bench.store, context.job)
        raise Paused

    assert run(bench, monkeypatch, pause).state == "paused"
    cancelled = run(bench, monkeypatch, raising(Cancelled()))
    assert cancelled.state == "cancelled" and cancelled.error is None and cancelled.model_id is None


def test_a_cancel_in_the_last_moment_makes_no_model(bench, monkeypatch):
    def late(_spec, context):
        jobs.request(bench.store, context.job, "cancel")
        return Outcome(result={"would": "be"})

    job = run(bench, monkeypatch, late)
    assert job.state == "cancelled" and job.result == {}


def test_an_attempt_that_was_given_up_cannot_end_the_job(bench, monkeypatch):
    def given_up(_spec, context):
        jobs.requeue_orphans(bench.store, "cpu")
        return Outcome(result={"late": True})

    with pytest.raises(st.StoreError, match="given up"):
        run(bench, monkeypatch, given_up)
    (job,) = jobs.list_jobs(bench.store)
    assert (job.state, job.attempt, job.result) == ("queued", 2, {})


def test_pythons_log_and_warnings_go_to_the_jobs_log(bench, monkeypatch):
    def talk(_spec, _context):
        logging.getLogger("library").info("loaded %d rows", 3)
        logging.getLogger("library").debug("too much")
        logging.getLogger("httpx").info("GET /")
        warnings.showwarning("old", FutureWarning, "file", 1)
        return Outcome()

    lines = [(line["level"], line["message"]) for line in bench.log(run(bench, monkeypatch, talk))]
    assert ("info", "loaded 3 rows") in lines and ("warning", "FutureWarning: old") in lines
    assert not any("too much" in message or "GET" in message for _, message in lines)


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CoreError("x", code="mine"), "mine"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (OSError(errno.EDQUOT, "quota"), "disk_full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (OSError(errno.EIO, "broken"), "bug"),
        (ValueError("x"), "bug"),
    ],
)
def test_the_machines_limits_are_told_from_bugs(error, code):
    fields = child.error_fields(error)
    assert fields["code"] == code and fields["message"] and "\n" not in fields["message"]
    assert set(fields) == {"code", "message", "given", "legal", "next"}
    assert fields["next"] or code == "mine"


def test_the_stack_of_a_crash_is_there_only_where_there_was_one(tmp_path):
    assert child.crash_report(tmp_path) is None
    (tmp_path / child.CRASH_NAME).write_text("\n")
    assert child.crash_report(tmp_path) is None
    (tmp_path / child.CRASH_NAME).write_bytes(b"Fatal Python error: \xff\n")
    assert child.crash_report(tmp_path) == "Fatal Python error: \ufffd"
