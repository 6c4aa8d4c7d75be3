"""Fills a W&B run with what the store has of a job: curves, one row of pictures, histograms and tables, figures, artifacts.

Every row has the job's own step, and W&B takes no row twice at a step or before it: what is written again after a broken send
starts behind what the server has. The pictures and tables are one row after the last point, so they too are there once.

The edge to a parent: `run.use_artifact` needs a server, and offline raises TypeError. What becomes CreateArtifact + UseArtifact when
an offline run is synced is `run._log_artifact(..., is_user_created=True, use_after_commit=True)`: private, so wandb is pinned, a
test reads the written record, and the parents' ids stand in config and metadata besides. Online the parent was sent before its
children, so `use_artifact` finds it by its digest; the same private call does that, whatever version number W&B gave it.
"""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from PIL import Image

from core.errors import CoreError
from core.mirror.extras import Extras
from core.mirror.refusals import PARTIAL, first_line, refusal
from core.mirror.runs import ArtifactRecord, RunRecord, identity_text
from store import Store
from store.mirror import Point

WEIGHTS_NAME = "model.safetensors"
IDENTITY_NAME = "model.json"
STEP = "step"
"""The axis of every curve; the store lets no metric bear this name."""


@dataclass(frozen=True)
class Writer:
    """Writes one store's records into runs of one mode."""

    store: Store
    folder: Path
    mode: str
    upload_limit_s: float

    def define(self, run: wandb.Run) -> None:
        """All curves by the job's step; the last validation is what a list shows, and the best stands beside it."""
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        run.define_metric("val_psnr_db", step_metric=STEP, summary="max,last")
        run.define_metric("val_loss", step_metric=STEP, summary="min,last")

    def write_points(self, run: wandb.Run, record: RunRecord, *, after: int, until: int | None = None) -> int:
        """Logs the points behind step `after` (up to `until`); returns the last step that the run has now."""
        for point in record.points:
            if point.step <= after or (until is not None and point.step > until):
                continue
            run.log({**point.values, STEP: point.step, **_moment(point, record)}, step=point.step)
            after = point.step
        return after

    def write_end(self, run: wandb.Run, record: RunRecord, extras: Extras, *, after: int) -> None:
        """What stands at the end of a job: the row of pictures and tables, the final figures, the models."""
        step = last_step(record) + 1
        row = {**self._pictures(record), **_histograms(extras), **_tables(extras)}
        if row and step > after:
            run.log({**row, STEP: step - 1, "_timestamp": record.ended, "_runtime": record.ended - record.started}, step=step)
        run.summary.update(record.summary)
        artifacts = [
            run._log_artifact(self._artifact(used), aliases=[], is_user_created=True, use_after_commit=True)
            for used in record.uses
        ]
        if record.makes is not None:
            artifacts.append(run.log_artifact(self._artifact(record.makes)))
        if self.mode == "online":
            for artifact in artifacts:
                self._wait(artifact)

    def _wait(self, artifact: wandb.Artifact) -> None:
        """Raises CoreError where W&B did not take an artifact: without waiting, a run would end as if it had."""
        try:
            artifact.wait(timeout=max(1, int(self.upload_limit_s)))
        except Exception as error:  # wandb raises its own, ValueError and TimeoutError; each is said in one line
            known = refusal(error, artifact.name, at_start=False)
            if known is not None:
                raise known from error
            raise CoreError(
                f"W&B did not take the artifact {artifact.name}: {first_line(error)}",
                code=PARTIAL,
                given=artifact.name,
                next="Nothing is lost: the run waits in the store and is completed at the next sync.",
            ) from error

    def _pictures(self, record: RunRecord) -> dict[str, Any]:
        shown: dict[str, list[wandb.Image]] = {}
        for picture in record.pictures:
            with Image.open(io.BytesIO(self.store.blobs.read(picture.digest))) as opened:
                image = wandb.Image(opened.copy(), caption=picture.caption)
            shown.setdefault(f"{picture.caption.partition(' ')[0]}s", []).append(image)
        return dict(shown)

    def _artifact(self, record: ArtifactRecord) -> wandb.Artifact:
        made = wandb.Artifact(record.name, type="model", description=record.description, metadata=record.metadata)
        # wandb need not copy what never changes: a checkpoint of 1.2 GB would lie on the disk once a child, and once more.
        made.add_file(str(self._weights(record)), name=WEIGHTS_NAME, policy="immutable", skip_cache=True)
        with made.new_file(IDENTITY_NAME) as out:
            out.write(identity_text(record))
        return made

    def _weights(self, record: ArtifactRecord) -> Path:
        """The blob itself when it is sent at once; offline, a link that outlives the store's clean-up.

        Raises StoreError(broken_blob): what was altered on the disk is not what its id says.
        """
        blob = self.store.blobs.whole(record.blob_digest)
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


def last_step(record: RunRecord) -> int:
    """The step of a job's last point, 0 where it logged none."""
    return record.points[-1].step if record.points else 0


def _moment(point: Point, record: RunRecord) -> dict[str, float]:
    """The time of the job, not of the replay."""
    return {"_timestamp": point.time, "_runtime": max(0.0, point.time - record.started)}


def _histograms(extras: Extras) -> dict[str, Any]:
    return {
        f"weights/{name}": wandb.Histogram(np_histogram=(np.array(histogram.counts), np.array(histogram.edges)))
        for name, histogram in extras.histograms.items()
    }


def _tables(extras: Extras) -> dict[str, Any]:
    return {
        name: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows], allow_mixed_types=True)
        for name, table in extras.tables.items()
    }
