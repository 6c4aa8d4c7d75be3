"""The process that speaks to wandb. Run as `python -m core.mirror.sender`; with `writing` and `reading`, all that imports wandb.

Reads JSON lines on stdin: first where to send (home, folder, mode, project), then one request a line; answers each with one JSON
line. It opens the store for reading only: what was sent is recorded by whoever asks (`core.mirror.replay`), who also ends this
process when a run takes too long. One run a request, one after the other: `wandb sync` uploads runs side by side, and a child's
artifact may then arrive before its parent's. Requests: `{"job": id}` sends a finished job; with `until` the points of one at work
up to that step, and its run stays open; with `leave` such a run is put down as preempted or failed; with `verify` (where the run
lies) what W&B holds of it is compared with the store. `show` asks for the report and the view that compare some models.

Online a run is opened with `resume="allow"`: W&B says which step it has, and only what comes after is sent, so a send that was
broken off is completed and nothing is there twice. After the end W&B is asked what it has: only that counts as sent. Offline there
is nothing to ask, and a folder that was left half-written is written anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import wandb

import store.jobs as jobs
from core.compare import compare
from core.errors import CoreError, as_error
from core.mirror.extras import Extras, read_extras
from core.mirror.modes import check_reachable
from core.mirror.reading import API_LIMIT_S, confirm, read_remote
from core.mirror.refusals import first_line, refusal
from core.mirror.runs import RunRecord, jobs_of, read_run, subject_of
from core.mirror.verifying import compare_run
from core.mirror.wandb_file import read_run as read_file
from core.mirror.writing import Writer
from store import Store, open_store

LOCK_NAME = "sender.lock"


@dataclass
class Sender:
    """Writes runs of one store to one place. `live` are runs that stay open between requests, with the last step of each."""

    store: Store
    folder: Path
    mode: str
    project: str
    init_limit_s: float
    live: dict[str, tuple[wandb.Run, int]] = field(default_factory=dict)

    @property
    def writer(self) -> Writer:
        return Writer(self.store, self.folder, self.mode, self.init_limit_s * 4)

    def send(self, job_id: str) -> dict[str, Any]:
        """Sends one job; returns what the store is to remember of it."""
        record = read_run(self.store, job_id)
        job = jobs.get_job(self.store, job_id)
        extras = read_extras(self.store, job, subject_of(self.store, job), record.notes)
        self._forget_half_written(record.id)
        run, after = self.live.pop(job_id) if job_id in self.live else self._open(record)
        try:
            self._finish(run, record, extras, after)
        except BaseException as error:
            run.finish(exit_code=1)
            known = refusal(error, record.name, at_start=False) if not isinstance(error, CoreError) else None
            if known is not None:
                raise known from error
            raise
        remote, url = f"{run.entity}/{run.project}/{run.id}", run.url
        if self.mode == "offline":
            written = self._run_file(record.id)
            assert written is not None, f"wandb wrote no run file for {record.id} below {self.folder}"
            remote = str(written.parent.relative_to(self.folder))
        else:
            has_row = bool(record.pictures or extras.histograms or extras.tables)
            confirm(remote, record, has_row=has_row, limit_s=self.init_limit_s / 3)
        sent = [*record.uses, *([record.makes] if record.makes is not None else [])]
        return {
            "remote": remote,
            "url": url or "",
            "name": record.name,
            "points": sum(len(point.values) for point in record.points),
            "artifacts": [artifact.name for artifact in sent],
            "notes": record.notes,
        }

    def append(self, job_id: str, until: int) -> dict[str, Any]:
        """Sends the points of a job at work up to a step; its run stays open."""
        record = read_run(self.store, job_id)
        run, after = self.live.get(job_id) or self._open(record)
        self.live[job_id] = (run, self.writer.write_points(run, record, after=after, until=until))
        return {"remote": f"{run.entity}/{run.project}/{run.id}", "url": run.url or "", "name": record.name}

    def leave(self, job_id: str, state: str) -> dict[str, Any]:
        """Puts an open run down: W&B shows it as preempted or failed, and takes it up again later."""
        if job_id in self.live:
            run, _ = self.live.pop(job_id)
            if state == "preempted":
                run.mark_preempting()
            run.finish(exit_code=1)
        return {"state": state}

    def verify(self, job_id: str, remote: str) -> dict[str, Any]:
        """What W&B (at `entity/project/run`), or the offline run's file, says otherwise than the store: one line each."""
        record = read_run(self.store, job_id)
        if self.mode == "online":
            found = read_remote(remote)
        else:
            path = self._run_file(record.id)
            found = None if path is None else read_file(path)
        return {"problems": compare_run(record, found)}

    def show(self, models: list[str], known: dict[str, dict[str, str]]) -> dict[str, Any]:
        """The comparison report and the workspace view of some models; saved online, over those that are `known`."""
        from core.mirror import showing  # wandb-workspaces takes as long to import as wandb: only where it is asked for

        entity = str(wandb.Api(timeout=API_LIMIT_S).default_entity) if self.mode == "online" else ""
        comparison, job_ids = compare(self.store, models), jobs_of(self.store, models)
        views: dict[str, Any] = {
            "report": showing.build_report(comparison, job_ids, self.project, entity),
            "workspace": showing.build_workspace(comparison, job_ids, self.project, entity),
        }
        saved = {}
        if self.mode == "online":
            try:
                saved = {kind: showing.save(view, known.get(kind, {})) for kind, view in views.items()}
            except Exception as error:  # wandb raises its own and requests'; each is said in one line
                known_error = refusal(error, self.project, at_start=True)
                assert known_error is not None
                raise known_error from error
        return {"specs": {kind: showing.plain(view) for kind, view in views.items()}, "saved": saved}

    def _open(self, record: RunRecord) -> tuple[wandb.Run, int]:
        """The run and the last step that W&B has of it, -1 for none."""
        if self.mode == "online":
            check_reachable()
        try:
            run = wandb.init(
                mode=self.mode,  # type: ignore[arg-type]
                dir=str(self.folder),
                project=self.project,
                id=record.id,
                name=record.name,
                group=record.group or None,
                job_type=record.job_type,
                tags=list(record.tags),
                notes=record.about,
                config=record.config,
                resume="allow" if self.mode == "online" else None,
                reinit="create_new",
                settings=_settings(self.init_limit_s),
            )
        except Exception as error:  # the server, the network or the key; wandb has many names for it
            known = refusal(error, self.project, at_start=True)
            assert known is not None
            raise known from error
        self.writer.define(run)
        return run, run.starting_step - 1

    def _finish(self, run: wandb.Run, record: RunRecord, extras: Extras, after: int) -> None:
        # What was not known while the job was at work; config keys of a resumed run are overwritten.
        run.config.update(record.config, allow_val_change=True)
        self.writer.write_points(run, record, after=after)
        self.writer.write_end(run, record, extras, after=after)
        run.finish(exit_code=0)

    def _runs(self, run_id: str) -> list[Path]:
        return [path for path in self.folder.glob(f"wandb/offline-run-*-{run_id}") if not path.is_symlink()]

    def _run_file(self, run_id: str) -> Path | None:
        found = [path / f"run-{run_id}.wandb" for path in self._runs(run_id)]
        return next((path for path in found if path.is_file() and path.stat().st_size), None)

    def _forget_half_written(self, run_id: str) -> None:
        """A job is asked for only when it was never recorded as sent, so a folder of it is what a killed sender left."""
        if self.mode == "offline":
            for path in self._runs(run_id):
                shutil.rmtree(path)


def _settings(init_limit_s: float) -> wandb.Settings:
    """Quiet, and without what would describe the mirror's own process instead of the job: statistics, code, git, host.

    wandb tries a request that failed again a few times only: the mirror's own queue tries a run again, for days if need be.
    """
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=init_limit_s,
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        **{f"x_{part}_retry_max": 5 for part in ("file_stream", "file_transfer", "graphql")},
        **{f"x_{part}_retry_wait_min_seconds": 0.5 for part in ("file_stream", "file_transfer", "graphql")},
        **{f"x_{part}_retry_wait_max_seconds": 10.0 for part in ("file_stream", "file_transfer", "graphql")},
    )


def _answer(sender: Sender, request: dict[str, Any]) -> dict[str, Any]:
    job_id = str(request["job"])
    try:
        if "until" in request:
            return {"ok": True, "sent": sender.append(job_id, int(request["until"]))}
        if "leave" in request:
            return {"ok": True, "sent": sender.leave(job_id, str(request["leave"]))}
        if "show" in request:
            return {"ok": True, "sent": sender.show(request["show"], request["known"])}
        if "verify" in request:
            return {"ok": True, "sent": sender.verify(job_id, str(request["verify"]))}
        return {"ok": True, "sent": sender.send(job_id)}
    except Exception as error:  # this process's boundary: the asker records it and goes on
        fields = as_error(error) or {
            "code": "mirror_failed",
            "message": f"W&B did not take the run: {type(error).__name__}: {first_line(error)}",
            "given": job_id,
            "legal": None,
            "next": "Nothing is lost: the run waits in the store. Look at mirror.log in the mirror's folder.",
        }
        return {"ok": False, "error": fields}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers until stdin ends. A sender whose asker was killed may still be at its last run: the next request waits for it."""
    where = json.loads(requests.readline())
    store = open_store(where["home"], read_only=True)
    try:
        sender = Sender(store, Path(where["folder"]), where["mode"], where["project"], where["init_limit_s"])
        for line in requests:
            with (sender.folder / LOCK_NAME).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                answer = _answer(sender, json.loads(line))
            answers.write(json.dumps(answer, default=str) + "\n")
            answers.flush()
        for job_id in list(sender.live):
            sender.leave(job_id, "preempted")
    finally:
        store.close()


def main() -> None:
    """Keeps stdin and stdout to itself: wandb, and the service that it starts, see the log and nothing."""
    with os.fdopen(os.dup(0)) as requests, os.fdopen(os.dup(1), "w") as answers:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        serve(requests, answers)


if __name__ == "__main__":
    main()
