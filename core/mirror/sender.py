"""The process that speaks to wandb, and the only file that imports it. Run as `python -m core.mirror.sender`.

Reads JSON lines on stdin: first where to send (home, folder, mode, project), then one `{"job": id}` a run; answers each
with one JSON line. It opens the store for reading only: what was sent is recorded by whoever asks (`core.mirror.replay`),
who also ends this process when a run takes too long. One run a request, one after the other: `wandb sync` uploads runs
side by side, and a child's artifact may then arrive before its parent's.

The edge to a parent: `run.use_artifact` needs a server, and offline raises TypeError. What becomes CreateArtifact +
UseArtifact when an offline run is synced is `run._log_artifact(..., is_user_created=True, use_after_commit=True)`:
private, so wandb is pinned, a test reads the written record, and the parents' ids stand in config and metadata besides.
The same call is used online.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import wandb
from PIL import Image

from core.errors import CoreError, as_error
from core.mirror.modes import UNREACHABLE
from core.mirror.runs import ArtifactRecord, RunRecord, identity_text, read_run
from store import Store, open_store

WEIGHTS_NAME = "model.safetensors"
IDENTITY_NAME = "model.json"
STEP = "step"
"""The axis of every curve; the store lets no metric bear this name."""


@dataclass(frozen=True)
class Sender:
    """Writes runs of one store to one place."""

    store: Store
    folder: Path
    mode: str
    project: str
    init_limit_s: float

    def send(self, job_id: str) -> dict[str, Any]:
        """Sends one job; returns what the store is to remember of it."""
        record = read_run(self.store, job_id)
        self._forget_half_written(record.id)
        run = self._open(record)
        try:
            remote = self._fill(run, record)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish(exit_code=0)
        if self.mode == "offline":
            written = self._run_file(record.id)
            assert written is not None, f"wandb wrote no run file for {record.id} below {self.folder}"
            remote = str(written.parent.relative_to(self.folder))
        sent = [*record.uses, *([record.makes] if record.makes is not None else [])]
        return {
            "remote": remote,
            "name": record.name,
            "points": sum(len(point.values) for point in record.points),
            "artifacts": [artifact.name for artifact in sent],
            "notes": record.notes,
        }

    def _open(self, record: RunRecord) -> wandb.Run:
        try:
            return wandb.init(
                mode=self.mode,  # type: ignore[arg-type]
                dir=str(self.folder),
                project=self.project,
                id=record.id,
                name=record.name,
                group=record.group or None,
                job_type=record.job_type,
                tags=list(record.tags),
                config=record.config,
                settings=_settings(self.init_limit_s),
            )
        except wandb.Error as error:  # the server, the network or the key: no other run would fare better
            raise CoreError(
                f"W&B cannot be reached, or refuses: {_first_line(error)}",
                code=UNREACHABLE,
                given=self.project,
                legal="a W&B server that answers, and a key with rights to the project",
                next="Nothing is lost: the runs wait in the store. Check network and key, then sync again.",
            ) from error

    def _fill(self, run: wandb.Run, record: RunRecord) -> str:
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        for point in record.points:
            moment = {"_timestamp": point.time, "_runtime": max(0.0, point.time - record.started)}
            run.log({**point.values, STEP: point.step, **moment}, step=point.step)
        if record.pictures:
            shown: dict[str, list[wandb.Image]] = {}
            for picture in record.pictures:
                with Image.open(io.BytesIO(self.store.blobs.read(picture.digest))) as opened:
                    image = wandb.Image(opened.copy(), caption=picture.caption)
                shown.setdefault(f"{picture.caption.partition(' ')[0]}s", []).append(image)
            last = record.points[-1].step if record.points else 0
            run.log({**shown, STEP: last}, step=last + 1)
        run.summary.update(record.summary)
        for used in record.uses:
            run._log_artifact(self._artifact(used), aliases=[], is_user_created=True, use_after_commit=True)
        if record.makes is not None:
            run.log_artifact(self._artifact(record.makes))
        return run.path

    def _artifact(self, record: ArtifactRecord) -> wandb.Artifact:
        made = wandb.Artifact(record.name, type="model", description=record.description, metadata=record.metadata)
        # wandb need not copy what never changes: a checkpoint of 1.2 GB would lie on the disk once a child, and once more.
        made.add_file(str(self._weights(record)), name=WEIGHTS_NAME, policy="immutable", skip_cache=True)
        with made.new_file(IDENTITY_NAME) as out:
            out.write(identity_text(record))
        return made

    def _weights(self, record: ArtifactRecord) -> Path:
        """The blob itself when it is sent at once; offline, a link that outlives the store's clean-up."""
        blob = self.store.blobs.path(record.blob_digest)
        if self.mode == "online":
            return blob
        kept = self.folder / "weights" / f"{record.blob_digest}.safetensors"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            try:
                os.link(blob, partial)
            except OSError:  # another file system, or one without links
                shutil.copyfile(blob, partial)
            os.replace(partial, kept)
        return kept

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
    """Quiet, and without what would describe the mirror's own process instead of the job: statistics, code, git, host."""
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
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")


def _answer(sender: Sender, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": True, "sent": sender.send(str(request["job"]))}
    except Exception as error:  # this process's boundary: the asker records it and goes on
        fields = as_error(error) or {
            "code": "mirror_failed",
            "message": f"W&B did not take the run: {type(error).__name__}: {_first_line(error)}",
            "given": request.get("job"),
            "legal": None,
            "next": "Nothing is lost: the run waits in the store. Look at mirror.log in the mirror's folder.",
        }
        return {"ok": False, "error": fields}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers until stdin ends."""
    where = json.loads(requests.readline())
    store = open_store(where["home"], read_only=True)
    try:
        sender = Sender(store, Path(where["folder"]), where["mode"], where["project"], where["init_limit_s"])
        for line in requests:
            answers.write(json.dumps(_answer(sender, json.loads(line)), default=str) + "\n")
            answers.flush()
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
