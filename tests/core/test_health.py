"""When a child is given up: a hung one and one that ignores a cancel, but never one that works."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from core.jobs import health
from core.jobs.health import PATIENCE, Pulse, kill

GONE = 1 << 30
"""No system gives a process this number."""


class Child:
    """A job as the store tells it, on a clock of its own."""

    def __init__(self, monkeypatch):
        self.now, self.used = 1000.0, 0.0
        self.row = SimpleNamespace(state="running", heartbeat=1.0, pid=os.getpid())
        monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(health, "_processor_s", lambda _pid: self.used)
        self.pulse = Pulse(heartbeat_timeout_s=10.0, cancel_release_s=2.0)

    def lives(self, seconds: float, *, beats: bool = False, load: float = 0.0) -> float | None:
        """Lets time pass in steps of 0.1 s; after how many seconds the child is over, None where it is not."""
        for step in range(1, round(seconds * 10) + 1):
            self.now += 0.1
            self.used += 0.1 * load
            if beats:
                self.row.heartbeat += 0.1
            if self.pulse.is_over(self.row):
                return step / 10
        return None


@pytest.fixture
def child(monkeypatch):
    return Child(monkeypatch)


def test_a_child_that_beats_is_waited_for_for_ever(child):
    assert child.lives(500, beats=True) is None and not child.pulse.is_hung


def test_silence_without_work_is_a_hang(child):
    child.lives(3, beats=True)
    assert child.lives(60) == pytest.approx(10, abs=0.3) and child.pulse.is_hung


def test_silence_with_work_is_patience_until_it_is_too_long(child):
    child.lives(3, beats=True)
    assert child.lives(PATIENCE * 10 - 1, load=1.0) is None
    assert child.lives(60, load=1.0) == pytest.approx(1, abs=0.3) and child.pulse.is_hung


def test_a_deadlock_after_work_is_a_hang_from_then_on(child):
    assert child.lives(50, load=0.5) is None
    assert child.lives(60, load=0.001) == pytest.approx(10, abs=1.3) and child.pulse.is_hung


def test_a_beat_ends_the_doubt(child):
    assert child.lives(9) is None
    assert child.lives(0.1, beats=True) is None
    assert child.lives(9) is None


def test_a_cancel_that_is_not_answered_ends_the_child_and_is_no_hang(child):
    child.row.state = "cancelling"
    assert child.lives(5, beats=True, load=1.0) == pytest.approx(2, abs=0.3)
    assert not child.pulse.is_hung


def test_a_second_cancel_has_its_own_time(child):
    for _ in range(3):
        child.row.state = "cancelling"
        assert child.lives(1.9, beats=True) is None
        child.row.state = "running"
        assert child.lives(1, beats=True) is None


def test_processor_time_is_told_of_living_processes_only():
    assert 0 < health._processor_s(os.getpid()) < psutil.boot_time()
    assert health._processor_s(GONE) == health._processor_s(None) == 0.0


def test_only_the_process_that_was_meant_is_killed():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = psutil.Process(process.pid).create_time()
        kill(SimpleNamespace(pid=None, pid_started=None))
        kill(SimpleNamespace(pid=GONE, pid_started=started))
        kill(SimpleNamespace(pid=process.pid, pid_started=started - 60))  # the number was given to another process since
        assert psutil.Process(process.pid).is_running()
        kill(SimpleNamespace(pid=process.pid, pid_started=started))
        assert not psutil.pid_exists(process.pid)
    finally:
        process.kill()
        process.communicate()
