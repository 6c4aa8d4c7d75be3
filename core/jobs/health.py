"""Whether a job's child is still to be waited for, and stopping one for sure."""

from __future__ import annotations

import time

import psutil

from store import JobRow

BUSY_SHARE = 0.01
"""Processor time per second that counts as working: a slow download takes more, a deadlock takes none."""
PATIENCE = 12
"""A child that computes without a heartbeat is waited for this many times longer: one validation step may take minutes."""


class Pulse:
    """Tells a hung child, and one that does not answer a cancel, from one that works.

    Hung: no heartbeat for `heartbeat_timeout_s` and hardly any processor time meanwhile; or no heartbeat for 12 times as long,
    whatever the processor says (waiting for a dead GPU keeps it spinning).
    """

    def __init__(self, heartbeat_timeout_s: float, cancel_release_s: float) -> None:
        self.timeout_s, self.cancel_s = heartbeat_timeout_s, cancel_release_s
        self.is_hung = False
        self._cancelled_at: float | None = None
        self._heartbeat: float | None = None
        self._beat_at = self._worked_at = time.monotonic()
        self._processor_s = 0.0

    def is_over(self, row: JobRow) -> bool:
        """Whether the child must be killed; called a few times a second with the job as it is now."""
        now, used = time.monotonic(), _processor_s(row.pid)
        if row.state == "cancelling":
            self._cancelled_at = self._cancelled_at or now
            return now - self._cancelled_at > self.cancel_s
        self._cancelled_at = None
        if row.heartbeat != self._heartbeat:
            self._heartbeat, self._beat_at, self._worked_at, self._processor_s = row.heartbeat, now, now, used
        elif used - self._processor_s > BUSY_SHARE * max(1.0, now - self._worked_at):
            self._worked_at, self._processor_s = now, used
        self.is_hung = now - self._worked_at > self.timeout_s or now - self._beat_at > PATIENCE * self.timeout_s
        return self.is_hung


def _processor_s(pid: int | None) -> float:
    """Seconds of processor time that a process has used; 0 where it is gone."""
    if pid is None:
        return 0.0
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def kill(row: JobRow) -> None:
    """Kills a job's child, known by pid and start time, and waits until it is gone."""
    if row.pid is None:
        return
    try:
        process = psutil.Process(row.pid)
        if row.pid_started is None or abs(process.create_time() - row.pid_started) < 1.0:
            process.kill()
            process.wait(10)
    except psutil.NoSuchProcess:
        return
