"""The part of `ModelManager` that knows exports: submits them, lists what was made of a model, and hands the files out. No torch."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import store as st
import store.jobs as jobs
from core.checks import SpecLike, checked, weights_path
from core.errors import CoreError
from core.exporting.tools import FORMATS, PUBLISHED, TITLES, check_tools
from core.specs import ExportSpec
from dcaecore.config import DCAEConfig
from dcaecore.layout import Layout
from store import JobRow, Store


@dataclass(frozen=True)
class Export:
    """One finished export: what was asked for, its files, and what its check and its benchmark said."""

    job_id: str
    created: str
    spec: ExportSpec
    files: tuple[dict[str, Any], ...]
    check: dict[str, float]
    benchmark: dict[str, Any]
    good: bool
    reasons: tuple[str, ...]
    snippet: str

    @property
    def title(self) -> str:
        """Format, precision and form in a few words."""
        spec = self.spec
        kind = "int8" if spec.quantize == "int8" else spec.dtype
        parts = [TITLES[spec.format], kind, *([] if spec.part == "both" else [spec.part])]
        return " · ".join([*parts, *(["8-bit images"] if spec.processing else []), *([] if spec.dynamic else ["one size"])])

    @property
    def bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "job": self.job_id, "created": self.created, "spec": self.spec.model_dump(mode="json"), "files": list(self.files),
            "check": self.check, "benchmark": self.benchmark, "good": self.good, "reasons": list(self.reasons),
        }  # fmt: skip


class Exports:
    """Exports of models; files lie in the store, and outlive the clean-up with their job."""

    store: Store

    def _check_export(self, ref: str, spec: SpecLike = None) -> ExportSpec:
        """The checked spec; raises CoreError for a missing tool, an image size or a shape that cannot be."""
        given, row = checked(ExportSpec, spec), st.get_model(self.store, ref)
        check_tools(given.format)
        DCAEConfig.from_json(row.config).check_image_size(given.image_size, given.image_size)
        layout = Layout.from_json(row.layout)
        if given.format in PUBLISHED and (layout.kept or layout.held):
            raise CoreError(
                f"{row.name} was cut at {len(layout.kept) or len(layout.held)} places: the {given.format} format knows whole stages only.",
                code="shape", given=given.format, legal=[form for form in FORMATS if form not in PUBLISHED],
            )  # fmt: skip
        weights_path(self.store, row)
        return given

    def exports(self, ref: str) -> list[Export]:
        """A model's finished exports, newest first."""
        model = st.get_model(self.store, ref).id
        return [_read(job) for job in jobs.list_jobs(self.store, ("done",), None, operations=("export",), parent=model)]

    def export(self, job: str) -> Export:
        """One export by its job; raises CoreError for a job that made none."""
        row = jobs.get_job(self.store, job)
        if row.operation != "export" or row.state != "done":
            raise CoreError(
                f"{row.name} is no finished export.", code="no_export", given=row.id, legal="a done job of operation export"
            )
        return _read(row)

    def export_bundle(self, job: str) -> bytes:
        """A zip of an export's files with `run.py`, which runs it, and `export.json`, which says how it was checked."""
        found, out = self.export(job), io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for file in found.files:
                archive.writestr(zipfile.ZipInfo(file["name"]), self.store.blobs.read(file["digest"]))
            archive.writestr(zipfile.ZipInfo("run.py"), found.snippet)
            archive.writestr(zipfile.ZipInfo("export.json"), json.dumps(found.to_json(), indent=1, sort_keys=True) + "\n")
        return out.getvalue()

    def save_export(self, job: str, folder: Path | str) -> Path:
        """Writes an export's files into a folder (made, if it is not there); never overwrites. Raises CoreError."""
        found, target = self.export(job), Path(folder).expanduser()
        there = [file["name"] for file in found.files if (target / file["name"]).exists()]
        if there:
            raise CoreError(
                f"{target / there[0]} is there already.", code="exists", given=str(target), next="Choose another folder."
            )
        try:
            target.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(io.BytesIO(self.export_bundle(job))) as archive:
                archive.extractall(target)
        except OSError as error:
            raise CoreError(f"{target} could not be written: {error}", code="write", given=str(target)) from error
        return target


def _read(job: JobRow) -> Export:
    result = job.result
    return Export(
        job.id, job.created, ExportSpec.model_validate(job.spec), tuple(result["files"]), result["check"], result["benchmark"],
        bool(result["good"]), tuple(result["reasons"]), result["snippet"],
    )  # fmt: skip
