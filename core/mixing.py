"""A training on several data sets, and on images that are drawn more often than others: what is checked and filled in. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import store.jobs as jobs
from core.checks import changed, checked
from core.errors import CoreError
from core.inspection import ImageTable
from core.specs import DataSpec, RetrainSpec
from dcaecore.shares import shares_at
from store import Store, get_model, metrics

SLICE_TITLES = {"contrast_low": "low contrast", "contrast_middle": "middle contrast", "contrast_high": "high contrast"}


def set_and_row(spec: RetrainSpec, row_id: str) -> tuple[int, str]:
    """The number (from 0) of a training row's data set, and the row's id in it. Raises CoreError for a row of no set."""
    if not spec.more_data:
        return 0, row_id
    number, _, row = row_id.partition(":")
    if not number.isdigit() or not 1 <= int(number) <= len(spec.data_sets):
        raise CoreError(
            f"The data has no row {row_id!r}.", code="row", given=row_id, legal=f"<set>:<row>, sets 1 to {len(spec.data_sets)}"
        )
    return int(number) - 1, row


class Mixing:
    """The part of `ModelManager` that knows what a training draws from."""

    store: Store
    frame: Callable[[DataSpec | Mapping[str, Any], str], bytes]
    image_tags: Callable[[DataSpec | Mapping[str, Any]], dict[str, tuple[str, ...]]]
    tag_images: Callable[..., None]
    without: Callable[[DataSpec | Mapping[str, Any], Sequence[str]], dict[str, Any]]

    def _with_losses(self, parent: str | Mapping[str, str], spec: RetrainSpec) -> RetrainSpec:
        """The spec with the inspection that images are drawn by, where it asks for one and names none: the newest of the parent.

        Where the parent is a job, of the model that its chain begins with. Raises CoreError where there is none, or of other images.
        """
        if spec.draw_by != "loss" or spec.loss_table:
            return spec
        if spec.more_data:
            raise CoreError(
                "An inspection is of one data set, and this training has several.", code="no_inspection", given="loss",
                legal=["alike", "contrast"],
            )  # fmt: skip
        model = get_model(self.store, parent if isinstance(parent, str) else self._begins_with(parent["job"]))
        found = jobs.list_jobs(self.store, ("done",), 1, operations=("inspect",), parent=model.id)
        if not found:
            raise CoreError(
                f"The images of {model.name} were not looked at yet.", code="no_inspection", given="loss", legal=["alike", "contrast"],
                next=f"Inspect it first: inspect {model.id}, or on the Retrain page.",
            )  # fmt: skip
        digest = str(found[0].result["table_digest"])
        data = ImageTable.from_json(json.loads(self.store.blobs.read(digest))).data
        if (data["kind"], data["location"]) != (spec.data.kind, spec.data.location):
            raise CoreError(
                f"The newest inspection of {model.name} is of other images.", code="no_inspection", given=data["location"],
                legal=spec.data.location, next="Inspect it on the images of this training.",
            )  # fmt: skip
        return changed(spec, loss_table=digest)

    def _begins_with(self, ref: str) -> str:
        """The model that a chain of jobs begins with."""
        job = jobs.get_job(self.store, ref)
        while job.parent_model_id is None and job.depends_on:
            job = jobs.get_job(self.store, job.depends_on[0])
        if job.parent_model_id is None:
            raise CoreError(f"{job.name} has no parent model.", code="no_parent", given=ref)
        return job.parent_model_id

    def share_curve(self, spec: Mapping[str, Any], *, points: int = 100) -> tuple[list[int], dict[str, list[float]]]:
        """Steps (from 0), and by data set its share of the batch there; nothing for one set, or for shares by the number of images."""
        given = checked(RetrainSpec, spec)
        if not given.data_weights:
            return [], {}
        steps = np.unique(np.linspace(0, given.total_steps - 1, points).astype(int))
        found = shares_at(
            steps, given.data_weights, given.data_weights_end or given.data_weights, total_steps=given.total_steps,
            temperature=given.data_temperature,
        )  # fmt: skip
        names = [f"set {number}: {data.location}" for number, data in enumerate(given.data_sets, start=1)]
        return steps.tolist(), {name: found[:, place].tolist() for place, name in enumerate(names)}

    def leave_out(self, spec: Mapping[str, Any], row_ids: Sequence[str]) -> dict[str, Any]:
        """Retrain values that leave further training rows out, each in its own data set."""
        given = checked(RetrainSpec, {**spec, "row_weights": ()})
        sets: list[Any] = list(given.data_sets)
        for number in range(len(sets)):
            own = [row for place, row in (set_and_row(given, row_id) for row_id in row_ids) if place == number]
            if own:
                sets[number] = self.without(sets[number], own)
        return {**spec, "data": _plain(sets[0]), "more_data": tuple(_plain(data) for data in sets[1:])}

    def training_frame(self, spec: RetrainSpec | Mapping[str, Any], row_id: str) -> bytes:
        """One training image as PNG, at its own size. Raises CoreError for an unknown row, DataError for a broken one."""
        given = RetrainSpec.model_validate(spec)
        number, row = set_and_row(given, row_id)
        return self.frame(given.data_sets[number], row)

    def training_tags(self, spec: RetrainSpec | Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Training row -> the words on it, of those that have any."""
        sets = RetrainSpec.model_validate(spec).data_sets
        if len(sets) == 1:
            return self.image_tags(sets[0])
        return {f"{i}:{row}": words for i, data in enumerate(sets, start=1) for row, words in self.image_tags(data).items()}

    def tag_training(
        self, spec: RetrainSpec | Mapping[str, Any], row_ids: Sequence[str], tag: str, *, remove: bool = False
    ) -> None:
        """Puts a word on training rows, each in its own data set, or takes it off. Raises CoreError, StoreError."""
        given = RetrainSpec.model_validate(spec)
        placed = [set_and_row(given, row_id) for row_id in row_ids]
        for number, data in enumerate(given.data_sets):
            own = [row for place, row in placed if place == number]
            if own:
                self.tag_images(data, own, tag, remove=remove)

    def slice_table(self, ref: str) -> list[dict[str, Any]]:
        """The newest validation figures of each slice of a retraining: thirds by contrast, and each data set of several."""
        job = jobs.get_job(self.store, ref)
        latest = metrics.latest(self.store, [job.id]).get(job.id, {})
        spec = RetrainSpec.model_validate(job.spec)
        found: dict[str, dict[str, Any]] = {}
        for key in sorted(latest):
            figure, dot, name = key.removeprefix("val_").partition(".")
            if dot and key.startswith("val_"):
                title = SLICE_TITLES.get(name, name)
                if name.startswith("set_"):
                    number = int(name.removeprefix("set_"))
                    title = f"set {number}: {spec.data_sets[number - 1].location}"
                found.setdefault(name, {"slice": title})[figure] = latest[key]
        return list(found.values())


def _plain(data: Any) -> dict[str, Any]:
    return dict(data.model_dump() if isinstance(data, DataSpec) else data)
