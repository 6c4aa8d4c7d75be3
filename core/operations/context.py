"""What an operation is handed, and what it hands back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import store.jobs as jobs
from core.settings import Settings
from core.system_figures import SystemFigures
from store import JobRow, MetricWriter, NewModel, Store

PROGRESS_SECONDS = 0.25
LOG_NAME = "log.jsonl"


class Paused(Exception):
    """The job has left its device after a pause: the child ends, and a resume queues the job again."""


class Cancelled(Exception):
    """The job was cancelled; nothing is made."""


@dataclass
class Outcome:
    """What an operation made, to be stored in one transaction with the job's end."""

    model: NewModel | None = None
    scores: Sequence[Any] = ()
    measurements: Sequence[Mapping[str, Any]] = ()
    result: dict[str, Any] = field(default_factory=dict)


def log_line(level: str, message: str) -> str:
    """One line of a job's log as it stands in the file: JSON with time (ISO UTC), level, message."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "message": message}
    return json.dumps(line) + "\n"


def append_log(folder: Path, level: str, message: str) -> None:
    """A line for the log of a job whose process is gone."""
    with (folder / LOG_NAME).open("a") as file:
        file.write(log_line(level, message))


class Context:
    """A running job's way to the outside: the store, its log, its progress and what is asked of it."""

    def __init__(self, store: Store, job: JobRow, settings: Settings) -> None:
        self.store, self.job, self.settings, self.device = store, job, settings, job.device
        self.folder: Path = store.job_folder(job.id)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricWriter(store, job.id, job.attempt)
        self._log = (self.folder / LOG_NAME).open("a", buffering=1)
        self._reported = 0.0
        self.system = SystemFigures(self.device)
        self.counts_steps = False
        """Whether the operation logs metrics by steps of its own: it puts the machine's figures there."""

    def log(self, level: str, message: str) -> None:
        """One line of the job's log."""
        self._log.write(log_line(level, message))

    def resume_metrics(self, step: int) -> None:
        """The curves go on from `step`: what an earlier attempt wrote after it is dropped."""
        self.metrics.close()
        self.metrics = MetricWriter(self.store, self.job.id, self.job.attempt, resume_from=step)

    def progress(self, fraction: float, message: str = "", eta_s: float | None = None, *, force: bool = False) -> None:
        """How far the job is; written a few times a second at most."""
        now = time.monotonic()
        if force or now - self._reported >= PROGRESS_SECONDS:
            self._reported = now
            jobs.set_progress(self.store, self.job, fraction, message, eta_s)
            self.log_system()

    def log_system(self, *, now: bool = False) -> None:
        """The machine's figures as metrics, where a sample is due (or now); of an operation without steps, by their number."""
        if not self.counts_steps:
            self.metrics.log(self.system.count, self.system.due(now=now))

    def poll(self, steps_done: int | None = None) -> Literal["run", "pause", "cancel", "checkpoint"]:
        """What is asked of the job now, with so many steps behind it where it counts steps: a pause may be asked for at one."""
        verb, pause_step = jobs.read_request(self.store, self.job)
        if steps_done is not None and pause_step is not None and steps_done >= pause_step and jobs.reached(self.store, self.job):
            self.log("info", f"{pause_step} steps are done, as asked.")
            return "pause"
        return verb  # type: ignore[return-value]

    def check(self) -> None:
        """For operations without checkpoints: raises Cancelled, and takes a pause as a wait at this point."""
        control = self.poll()
        if control == "pause" and self.wait_paused() == "release":
            raise Paused
        if self.poll() == "cancel":
            raise Cancelled

    def wait_paused(self) -> Literal["run", "cancel", "release"]:
        """Stands still while the job is paused; `release` once it must leave the device."""
        jobs.paused(self.store, self.job)
        until = time.monotonic() + self.settings.pause_release_s
        while True:
            control = self.poll()
            if control == "cancel":
                return "cancel"
            if control != "pause":
                return "run"
            if time.monotonic() >= until and jobs.release(self.store, self.job):
                return "release"
            jobs.heartbeat(self.store, self.job)
            time.sleep(0.05)

    def close(self) -> None:
        """Closes the log and the metrics' connection."""
        self.metrics.close()
        self._log.close()
