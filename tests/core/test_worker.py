"""A device's worker by itself, with a stand-in for the child: real children are killed in test_service.py."""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest

import store.jobs as jobs
from core.jobs import child as job_child
from core.jobs import worker
from core.jobs.worker import Stop
from store import StoreError
from tests.core.in_process import InProcess

GONE = 1 << 30
"""No system gives a process this number."""


class Child:
    """Stands for a child process: lives until it is ended, or ends at once where it is given an exit code."""

    def __init__(self, exitcode=None, at_start=None):
        self.exitcode, self.at_start, self.ends = exitcode, at_start, []

    def start(self):
        if self.at_start:
            self.at_start()

    def is_alive(self):
        return self.exitcode is None

    def join(self, timeout=None):
        time.sleep(0.001)

    def terminate(self):
        self.ends.append("terminate")

    def kill(self):
        self.ends.append("kill")
        self.exitcode = -signal.SIGKILL if self.exitcode is None else self.exitcode


@pytest.fixture
def bench(settings, monkeypatch):
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.001)
    made = InProcess(settings)
    yield made
    made.store.close()


def running(bench, operation="import"):
    """A job that a child is said to work on."""
    bench.submit(operation, source="tiny")
    return jobs.set_running(bench.store, jobs.claim(bench.store, "cpu", "test"), GONE, 1.0)


def watch(bench, child, job, stop=None, **changes):
    """The job after `child` was watched to its end."""
    context = SimpleNamespace(Process=lambda **_: child)
    worker._run_child(bench.store, bench.settings.model_copy(update=changes), context, job, stop or Stop())
    return jobs.get_job(bench.store, job.id)


@pytest.mark.parametrize(
    ("exitcode", "words"), [(3, "exit code 3"), (-signal.SIGSEGV, "signal SIGSEGV"), (-signal.SIGKILL, "SIGKILL. .*memory")]
)
def test_a_child_that_dies_fails_its_job_with_the_cause(bench, exitcode, words):
    job = running(bench)
    (bench.store.job_folder(job.id)).mkdir(parents=True, exist_ok=True)
    (bench.store.job_folder(job.id) / job_child.CRASH_NAME).write_text("Fatal Python error")
    row = watch(bench, Child(exitcode), job)
    assert row.state == "failed" and row.error["code"] == "crashed" and row.error["given"] == exitcode
    assert re.search(words, row.error["message"])
    assert row.error["traceback"] == "Fatal Python error" and "Resume" in row.error["next"]
    assert bench.log(row)[-1]["message"] == row.error["message"]


def test_a_child_that_ended_its_job_is_left_alone(bench):
    job = running(bench)
    jobs.complete(bench.store, job, result={"steps": 3})
    assert watch(bench, Child(1), job).state == "done"
    other = running(bench)
    jobs.requeue_orphans(bench.store, "cpu")
    jobs.set_running(bench.store, jobs.claim(bench.store, "cpu", "test"), GONE, 2.0)
    row = watch(bench, Child(1), other)  # another attempt has taken over
    assert (row.state, row.attempt, row.error) == ("running", 2, None)


def test_a_child_that_dies_while_it_is_paused_leaves_its_job_paused_and_resumable(bench):
    job = running(bench)
    jobs.request(bench.store, job, "pause")
    assert jobs.paused(bench.store, job).pid == GONE
    row = watch(bench, Child(-signal.SIGKILL), job)
    assert (row.state, row.pid, row.error) == ("paused", None, None)
    assert jobs.resume(bench.store, row).state == "queued"  # not `running` in a process that is gone
    assert jobs.claim(bench.store, "cpu", "test").attempt == 2


def test_a_child_that_died_in_a_pause_just_as_it_was_resumed_has_crashed(bench, monkeypatch):
    job = running(bench)
    jobs.request(bench.store, job, "pause")
    jobs.paused(bench.store, job)
    monkeypatch.setattr(worker, "kill", lambda row: row.state == "paused" and jobs.resume(bench.store, row))
    assert watch(bench, Child(-signal.SIGKILL), job).error["code"] == "crashed"


def test_a_process_that_cannot_be_started_fails_the_job(bench):
    def refuse():
        raise OSError("too many processes")

    row = watch(bench, Child(at_start=refuse), running(bench))
    assert row.state == "failed" and "could not be started: too many processes" in row.error["message"]


def test_a_silent_child_is_killed_and_its_job_fails_as_hung(bench):
    child = Child()
    row = watch(bench, child, running(bench), heartbeat_timeout_s=0.02)
    assert child.ends == ["kill"] and row.state == "failed" and row.error["code"] == "hung"
    assert "no sign of life" in row.error["message"]


def test_a_cancel_that_is_not_answered_ends_as_a_cancel(bench):
    job, child = running(bench), Child()
    jobs.request(bench.store, job, "cancel")
    row = watch(bench, child, job, cancel_release_s=0.02)
    assert child.ends == ["kill"] and row.state == "cancelled" and row.error is None


@pytest.mark.parametrize(("asked", "state", "attempt"), [(None, "queued", 2), ("pause", "paused", 1), ("cancel", "cancelled", 1)])
def test_a_worker_that_is_stopped_puts_its_job_back_without_counting_a_death(bench, asked, state, attempt):
    job, child, stop = running(bench), Child(), Stop()
    if asked:
        jobs.request(bench.store, job, asked)
    stop.ask(signal.SIGTERM, None)
    row = watch(bench, child, job, stop)
    assert child.ends == ["terminate", "kill"]
    assert (row.state, row.attempt, row.requeues, row.pid) == (state, attempt, 0, None)


def test_what_passes_by_itself_is_tried_again_and_nothing_else(caplog):
    stop, calls = Stop(), []

    def refuse(code, times):
        def call():
            calls.append(code)
            if len(calls) <= times:
                raise StoreError("The disk is full.", code=code)
            return "done"

        calls.clear()
        return call

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(worker, "RETRY_SECONDS", 0)
        for code in worker.PASSING:
            assert worker._insist(refuse(code, 3), stop) == "done" and len(calls) == 4
        assert "Trying again" in caplog.text
        with pytest.raises(StoreError):
            worker._insist(refuse("read_only", 1), stop)
        assert len(calls) == 1
        stop.ask()
        with pytest.raises(StoreError):
            worker._insist(refuse("busy", 1), stop)
        assert len(calls) == 1


@pytest.fixture
def served(bench, monkeypatch):
    """`serve` in this process; the children are stand-ins that complete their jobs. Returns the ids in order."""
    done: list[str] = []

    class Completing(Child):
        def __init__(self, target=None, args=(), name=""):
            super().__init__(exitcode=0)
            self.args = args

        def start(self):
            if self.args:
                job = jobs.get_job(bench.store, self.args[1])
                jobs.complete(bench.store, jobs.set_running(bench.store, job, GONE, 1.0))
                done.append(job.id)

    context = SimpleNamespace(Process=Completing, set_forkserver_preload=lambda _names: None)
    monkeypatch.setattr(worker, "multiprocessing", SimpleNamespace(get_context=lambda _kind: context))
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)

    def serve():
        worker.serve(bench.settings.model_copy(update={"worker_idle_s": 0.05}), "cpu")
        return done

    return serve


def test_a_worker_takes_what_a_dead_one_left_and_what_waits_then_leaves_when_idle(bench, served):
    orphan = running(bench)
    waiting = bench.submit("import", source="tiny")
    assert served() == [orphan.id, waiting.id]
    row = jobs.get_job(bench.store, orphan.id)
    assert (row.state, row.attempt, row.requeues) == ("done", 2, 1)
    assert not jobs.worker_alive(bench.store, "cpu")


def test_a_job_submitted_while_the_worker_leaves_is_served(bench, served, monkeypatch):
    plain, late = worker._serve, []

    def leaving(*arguments):
        plain(*arguments)
        if not late:
            assert jobs.worker_alive(bench.store, "cpu")  # so whoever submits now starts no other worker
            late.append(bench.submit("import", source="tiny").id)

    monkeypatch.setattr(worker, "_serve", leaving)
    assert served() == late != []


def test_a_signal_stops_the_worker_before_the_next_job(bench, served, monkeypatch):
    monkeypatch.setattr(worker.signal, "signal", lambda _number, handler: handler(signal.SIGTERM, None))
    bench.submit("import", source="tiny")
    assert served() == []
    assert [row.state for row in jobs.list_jobs(bench.store)] == ["queued"]


def test_the_command_ends_with_two_and_one_line_where_it_cannot_serve(bench, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["-c", bench.settings.model_dump_json(), "cpu"])
    with jobs.lock_worker(bench.store, "cpu"), pytest.raises(SystemExit) as end:
        worker.main()
    assert end.value.code == 2 and "already serves cpu" in caplog.text
