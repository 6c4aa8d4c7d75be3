"""The part of `ModelManager` that runs a model over whole folders of images, and finds what it made. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import store as st
import store.jobs as jobs
from core.augmentations import source_of
from core.checks import SpecLike, changed, checked
from core.errors import CoreError
from core.settings import Settings
from core.specs import InferSpec
from dcaecore.data import open_frames
from store import JobRow, Store

TABLE, SUMMARY, JOURNAL = "results.csv", "run.json", "journal.jsonl"
FIGURES = ("psnr_db", "ssim", "ms_ssim", "flip", "accuracy", "l1", "mse")
COLUMNS = ("file", "output", "latent", "width", "height", *FIGURES, "error")


@dataclass(frozen=True)
class Inference:
    """One finished run over a folder: where its files lie, how many images there were, and the means of their figures."""

    job_id: str
    created: str
    spec: InferSpec
    out: Path
    num_images: int
    num_broken: int
    means: dict[str, float]

    @property
    def there(self) -> bool:
        """Whether the results are still where the job put them."""
        return (self.out / TABLE).exists()

    def table(self) -> bytes:
        """`results.csv`; raises CoreError where somebody has moved it."""
        if not self.there:
            raise CoreError(f"The results are not in {self.out} any more.", code="no_results", given=str(self.out))
        return (self.out / TABLE).read_bytes()

    def rows(self) -> list[dict[str, Any]]:
        """Lines of the table, numbers as numbers; raises as `table` does."""
        read = csv.DictReader(io.StringIO(self.table().decode()))
        numbers = {*FIGURES, "width", "height"}
        return [{key: float(text) if key in numbers and text else text for key, text in line.items()} for line in read]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "job": self.job_id, "out": str(self.out), "num_images": self.num_images, "num_broken": self.num_broken,
            "means": self.means, "spec": self.spec.model_dump(mode="json"),
        }  # fmt: skip


class Inferring:
    """Batch inference."""

    store: Store
    settings: Settings
    _submit: Callable[..., JobRow]
    _check_size: Callable[[str, int], None]

    def infer(self, ref: str, spec: SpecLike = None, *, device: str | None = None) -> JobRow:
        """Submits every image of a data set to a model. Relative folders are those of this process.

        Raises CoreError for results that are there already or would lie among the images, DataError for data that is not there.
        """
        given, row = checked(InferSpec, spec), st.get_model(self.store, ref)
        self._check_size(row.id, given.image_size)
        if given.data.kind in ("folder", "parquet"):
            open_frames(source_of(given.data), cache_folder=self.settings.data_folder)
        if given.out is not None:
            given = changed(given, out=str(self._free_folder(given)))
        return self._submit(given, row.id, device=device, name="infer")

    def _free_folder(self, spec: InferSpec) -> Path:
        """The absolute folder of the results."""
        out = Path(spec.out or "").expanduser().resolve()
        if out.exists():
            raise CoreError(f"{out} is there already.", code="exists", given=str(out), next="Choose another folder.")
        images = Path(spec.data.location).expanduser().resolve()
        if spec.data.kind == "folder" and images in (out, *out.parents):
            raise CoreError(
                f"{out} lies among the images: the next run would read its results as images.", code="out", given=str(out),
                legal=f"a folder outside {images}",
            )  # fmt: skip
        above = next(folder for folder in out.parents if folder.exists())
        if not above.is_dir():
            raise CoreError(f"{above} is no folder.", code="out", given=str(out), legal="a folder that can be made")
        return out

    def inferences(self, ref: str) -> list[Inference]:
        """A model's finished runs over folders, newest first."""
        model = st.get_model(self.store, ref).id
        return [_read(job) for job in jobs.list_jobs(self.store, ("done",), None, operations=("infer",), parent=model)]

    def inference(self, job: str) -> Inference:
        """One by its job; raises CoreError for a job that is no finished one."""
        row = jobs.get_job(self.store, job)
        if row.operation != "infer" or row.state != "done":
            raise CoreError(f"{row.name} has no results.", code="no_results", given=row.id, legal="a done job of operation infer")
        return _read(row)


def _read(job: JobRow) -> Inference:
    found = job.result
    return Inference(
        job.id, job.created, InferSpec.model_validate(job.spec), Path(found["out"]), int(found["num_images"]),
        int(found["num_broken"]), {key: found["means"][key] for key in FIGURES if key in found["means"]},
    )  # fmt: skip
