"""`ModelManager`: every verb that a page, the terminal or a notebook may call. Submits jobs and reads the store; no torch.

A verb that makes something checks what can be known first and submits a job; `wait` (or a page's polling) sees it through.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import store as st
import store.jobs as jobs
from core.augmentations import Augmentations
from core.card import Cards
from core.checks import SpecLike, changed, checked, fields_of, weights_path
from core.compare import Comparison, compare
from core.data_runs import DataRuns
from core.devices import default_device, devices, why_no_sparse_kernels
from core.errors import CoreError
from core.exports import Exports
from core.forest import Forests
from core.housekeeping import Housekeeping
from core.image_losses import ImageFates
from core.inference import Inferring
from core.inspection import Inspection
from core.jobs.launch import ensure_worker
from core.kept_plans import maker_of, plan_for, plan_of, spec_of_choice
from core.layers import Layers
from core.mirroring import Mirroring
from core.mixing import Mixing
from core.names import model_name, pruned_name
from core.outcomes import Outcomes
from core.part_training import PartTraining
from core.presets import preset_on
from core.pruning.plans import Plan, predicted_layout
from core.pruning.prunable import check_two_four
from core.reporting import Reporting
from core.reproduction import Reproduction
from core.schedules import Round, rounds_of
from core.settings import Settings, read_settings
from core.specs import (
    BenchmarkSpec,
    DataSpec,
    EvaluateSpec,
    ImportSpec,
    ProfileSpec,
    PruneSpec,
    ReconstructSpec,
    RetrainSpec,
    ScheduleSpec,
    SensitivitySpec,
    Spec,
)
from core.stored_weights import StoredWeights
from core.training import Training
from core.unit_diff import UnitDiffs
from core.uploads import checked_upload
from dcaecore.config import DCAEConfig
from dcaecore.cost import Cost, estimate
from dcaecore.layout import Layout
from store import JobRow, ModelRow, Store

Ref = str
Parent = str | Mapping[str, str]

BACKGROUND_STEP_GMACS_PER_S = 14.0
"""Training speed of two CPU cores before anything was measured: forward + backward at 3 x the forward's MACs."""


class ModelManager(
    Outcomes,
    PartTraining,
    Training,
    Augmentations,
    Inspection,
    ImageFates,
    Mixing,
    Reproduction,
    Housekeeping,
    Forests,
    Cards,
    Reporting,
    Exports,
    DataRuns,
    Inferring,
    UnitDiffs,
    Layers,
    Mirroring,
):
    """The service over one store. `ModelManager("folder")`, or with `Settings` for more control.

    Raises StoreError for a folder that is no store, CoreError and dcaecore's errors for a caller's mistakes.
    """

    def __init__(self, home: Path | str | None = None, *, settings: Settings | None = None) -> None:
        self.settings = settings or read_settings()
        if home is not None:
            self.settings = self.settings.model_copy(update={"home": Path(home)})
        self.store: Store = st.open_store(self.settings.home)

    # Models ---------------------------------------------------------------------------------------------------------------

    def get_model(self, ref: Ref) -> ModelRow:
        """A model by id, prefix of six digits or more, alias or name."""
        return st.get_model(self.store, ref)

    def list_models(self, *, text: str | None = None, limit: int | None = None) -> list[ModelRow]:
        """Models, newest first."""
        return st.list_models(self.store, text=text, limit=limit)

    def relatives(self, ref: Ref, *, limit: int = 40) -> list[ModelRow]:
        """A small store's models, newest first; of a larger one a model's ancestors, itself and its newest descendants."""
        everything = self.list_models(limit=limit + 1)
        if len(everything) <= limit:
            return everything
        row = self.get_model(ref)
        line = [*st.ancestors(self.store, row.id), row]
        newest = sorted(st.descendants(self.store, row.id), key=lambda found: found.created)[-limit:]
        return [*reversed(newest), *sorted(line, key=lambda found: found.created, reverse=True)]

    def current(self) -> ModelRow | None:
        """The promoted model, else the newest, or None in an empty store."""
        named = st.aliases(self.store).get("current")
        if named is not None:
            return self.get_model(named)
        return next(iter(self.list_models(limit=1)), None)

    def promote(self, ref: Ref) -> ModelRow:
        """Makes a model the current one."""
        return st.set_alias(self.store, "current", self.get_model(ref).id)

    def shape(self, ref: Ref) -> tuple[DCAEConfig, Layout]:
        """A model's config and layout."""
        row = self.get_model(ref)
        return DCAEConfig.from_json(row.config), Layout.from_json(row.layout)

    def cost(self, ref: Ref, *, image_size: int = 128, batch_size: int = 1) -> Cost:
        """Figures by arithmetic, with the per-layer table."""
        config, layout = self.shape(ref)
        return estimate(config, layout, image_size=max(image_size, config.spatial_compression), batch_size=batch_size)

    def predict_pruning(self, parent: Ref, spec: SpecLike, *, image_size: int = 128) -> Cost | None:
        """What a pruning will cost, before anything runs; exact, as the rounding rule is.

        None where only the scores can tell: sites that are ranked together.
        """
        config, layout = self.shape(parent)
        size = max(image_size, config.spatial_compression)
        given = checked(PruneSpec, spec)
        predicted: Layout | None
        if given.plan is not None:
            kept = plan_for(self.store, given, self.get_model(parent))
            predicted = layout if given.apply == "mask" else kept.apply_to(config, layout)
        else:
            predicted = predicted_layout(config, layout, given)
        return None if predicted is None else estimate(config, predicted, image_size=size)

    def get_model_metrics(self, ref: Ref) -> dict[str, float | None]:
        """Facts, test figures and the newest benchmark figures of a model, by metric key."""
        row = self.get_model(ref)
        return {key: figure.value for key, figure in self.compare([row.id]).figures[row.id].items()}

    def compare(self, refs: Sequence[Ref], run: int | None = None) -> Comparison:
        """A comparison table, its costs of benchmark run `run`; see `core.compare`."""
        return compare(self.store, refs, run)

    def save_to_file(self, ref: Ref, target: Path | str) -> Path:
        """Copies a model's safetensors file to `target` (a file or a folder); never overwrites."""
        row = self.get_model(ref)
        path = Path(target).expanduser()
        path = path / f"{row.name}.safetensors" if path.is_dir() else path
        if path.exists():
            raise CoreError(f"{path} is there already.", code="exists", given=str(path), next="Choose another name.")
        try:
            path.write_bytes(self.weights(ref))
        except OSError as error:
            raise CoreError(f"{path} could not be written: {error}", code="write", given=str(path)) from error
        return path

    def weights(self, ref: Ref) -> bytes:
        """The bytes of a model's safetensors file."""
        return weights_path(self.store, self.get_model(ref), whole=True).read_bytes()

    def verify(self, ref: Ref | None = None) -> list[st.Problem]:
        """Re-derives ids and file digests; what does not fit."""
        return st.verify(self.store, ref)

    # Verbs ----------------------------------------------------------------------------------------------------------------

    def import_model(self, source: str = "demo", *, name: str | None = None, **options: Any) -> JobRow:
        """Submits an import of `demo`, a zoo name, a hub id, a folder or a file."""
        return self._submit(checked(ImportSpec, {"source": source, **options}), None, name=name or "import", interactive=True)

    def initialize_model(self, source: str = "demo", *, name: str | None = None, **options: Any) -> ModelRow:
        """Imports a model and waits for it (the first of a store becomes the current one)."""
        job = self.wait(self.import_model(source, name=name, **options).id)
        assert job.model_id is not None
        return self.get_model(job.model_id)

    def prune_model(self, parent: Parent, spec: SpecLike = None, *, device: str | None = None, name: str | None = None) -> JobRow:
        """Submits a pruning; the spec is checked against the parent first."""
        given = checked(PruneSpec, spec)
        self._check_pruning(parent, given)
        chose, again = given, ""
        if given.plan is not None:
            maker = maker_of(self.store, given.plan)
            plan_of(self.store, maker)  # also where the parent is yet to be made, and only the job can look at its shape
            given = given.model_copy(update={"plan": maker.id})
            chose, again = PruneSpec.model_validate(fields_of(spec_of_choice(self.store, maker.spec))), "-again"
        return self._submit(given, parent, device=device, name=name or pruned_name("dcae", chose, again))

    def plan_of(self, ref: Ref) -> Plan:
        """The units that a structured pruning kept, by the model that it made or by the plan's id; raises CoreError where there is none."""
        return plan_of(self.store, maker_of(self.store, ref))

    def retrain_model(
        self, parent: Parent, spec: SpecLike = None, *, device: str | None = None, name: str | None = None
    ) -> JobRow:
        """Submits a retraining."""
        given = self._with_losses(parent, checked(RetrainSpec, spec))
        self._check_retraining(parent, given, device)
        return self._submit(given, parent, device=device, name=name or model_name("dcae", "retrained"))

    def evaluate_model(self, model: Parent, spec: SpecLike = None, *, device: str | None = None) -> JobRow:
        """Submits an evaluation on pinned images."""
        given = checked(EvaluateSpec, spec)
        self._check_size(model, given.image_size)
        return self._submit(given, model, device=device, name="evaluate")

    def measure_sensitivity(self, model: Ref, spec: SpecLike = None, *, device: str | None = None) -> JobRow:
        """Submits a measurement of what pruning each site alone costs in quality."""
        given, row = checked(SensitivitySpec, spec), self.get_model(model)
        self._check_size(row.id, given.image_size)
        self._check_pruning(row.id, given.prune)
        return self._submit(given, row.id, device=device, name="sensitivity")

    def profile_latency(self, model: Ref, spec: SpecLike = None, *, device: str | None = None) -> JobRow:
        """Submits a measurement of each block's latency over a grid of widths."""
        given, row = checked(ProfileSpec, spec), self.get_model(model)
        self._check_size(row.id, given.image_size)
        return self._submit(given, row.id, device=device, name="profile")

    def benchmark_models(self, refs: Sequence[Ref] | Parent, spec: SpecLike = None, *, device: str | None = None) -> JobRow:
        """Submits one benchmark run over models, interleaved."""
        first: Parent
        given = checked(BenchmarkSpec, spec)
        if isinstance(refs, str | Mapping):
            first = refs
        else:
            first, *rest = [self.get_model(ref).id for ref in refs]
            given = given.model_copy(update={"models": (*given.models, *rest)})
        self._check_kernels(given, device)
        self._check_sizes([first, *given.models], given.every_image_size)
        return self._submit(given, first, device=device, name="benchmark")

    def export_model(self, ref: Ref, spec: SpecLike = None) -> JobRow:
        """Submits an export: written, checked against the model and timed, on the CPU whatever the device."""
        given, row = self._check_export(ref, spec), self.get_model(ref)
        return self._submit(given, row.id, device="cpu", name=f"export {given.format}")

    def reconstruct(self, refs: Sequence[Ref], image: bytes, *, image_size: int = 128, name: str = "the upload") -> JobRow:
        """Submits one picture (a file's bytes) to some models; it goes before long jobs. Raises CoreError for what is no plain picture."""
        first, *rest = [self.get_model(ref).id for ref in refs]
        spec = checked(
            ReconstructSpec,
            {"image_digest": self.store.blobs.put_bytes(checked_upload(image, name)), "image_size": image_size, "models": rest},
        )
        for ref in (first, *rest):
            self._check_size(ref, image_size)
        return self._submit(spec, first, name="reconstruct", interactive=True)

    def compress(
        self,
        parent: Ref,
        preset: str = "medium",
        *,
        data: DataSpec | Mapping[str, Any] | None = None,
        image_size: int | None = None,
        prune: SpecLike = None,
        retrain: SpecLike = None,
        evaluate: SpecLike = None,
        benchmark: SpecLike = None,
        device: str | None = None,
    ) -> list[JobRow]:
        """The whole chain as jobs: prune, retrain, evaluate, benchmark; parent and baseline too where never evaluated like this.

        `preset` is one of `core.presets.PRESETS`; `data` and `image_size` are those of each step; given specs stand as they are.
        Returns the jobs in order.
        """
        chosen = preset_on(preset, data, image_size)
        pruned = checked(PruneSpec, chosen.prune if prune is None else prune)
        held = self.held_part(parent, self.pruned_part(pruned.model_dump()))
        once = Round(pruned, changed(chosen.retrain, frozen_part=held) if retrain is None else checked(RetrainSpec, retrain))
        scored = checked(EvaluateSpec, chosen.evaluate if evaluate is None else evaluate)
        timed = checked(BenchmarkSpec, chosen.benchmark if benchmark is None else benchmark)
        return self._chain(parent, [once], scored, timed, device)

    def prune_in_rounds(
        self,
        parent: Ref,
        prune: SpecLike = None,
        retrain: SpecLike = None,
        *,
        schedule: str = "cubic",
        rounds: int | None = None,
        evaluate: SpecLike = None,
        benchmark: SpecLike = None,
        device: str | None = None,
    ) -> list[JobRow]:
        """A pruning in rounds of prune and retrain, each step a model; then evaluate and benchmark, as `compress` does.

        What the schedules do stands in `core.schedules`. `retrain` is the training of all rounds together; evaluation and benchmark
        are on its images and size where they are not given. Returns the jobs in order; nothing is submitted if a round cannot be.
        """
        plan = checked(ScheduleSpec, {"schedule": schedule, **({} if rounds is None else {"rounds": rounds})})
        trained = checked(RetrainSpec, retrain)
        size = {"image_size": trained.image_size}
        scored = checked(EvaluateSpec, {"data": trained.data, **size} if evaluate is None else evaluate)
        timed = checked(BenchmarkSpec, size if benchmark is None else benchmark)
        return self._chain(parent, rounds_of(checked(PruneSpec, prune), trained, plan), scored, timed, device)

    def _chain(
        self, parent: Ref, rounds: Sequence[Round], scored: EvaluateSpec, timed: BenchmarkSpec, device: str | None
    ) -> list[JobRow]:
        """Submits rounds of prune and retrain, an evaluation and a benchmark; everything is checked before the first job."""
        row = self.get_model(parent)
        for each in rounds:
            self._check_pruning(row.id, each.prune)
            self._check_retraining(row.id, self._with_losses(row.id, each.retrain), device)
        self._check_kernels(timed, device)
        for size in (scored.image_size, *timed.every_image_size):
            self._check_size(row.id, size)
        chain: list[JobRow] = []
        for subject in dict.fromkeys((row.id, st.baseline_of(self.store, row.id).id)):
            if not self._evaluated(subject, scored):
                chain.append(self.evaluate_model(subject, scored, device=device))
        last: Parent = row.id
        for each in rounds:
            named = pruned_name("dcae", each.prune, each.label) if each.prune.plan is None else None
            chain.append(self.prune_model(last, each.prune, device=device, name=named))
            name = model_name("dcae", f"retrained{each.label}")
            chain.append(self.retrain_model({"job": chain[-1].id}, each.retrain, device=device, name=name))
            last = {"job": chain[-1].id}
        chain.append(self.evaluate_model(last, scored, device=device))
        return [*chain, self.benchmark_models(last, timed, device=device)]

    def _evaluated(self, subject: str, spec: Spec) -> bool:
        """Whether a job has evaluated a model by these settings, or is about to."""
        states = ("done", "queued", "blocked", "starting", "running")
        known = jobs.list_jobs(self.store, states, None, operations=("evaluate",), parent=subject)
        return any(EvaluateSpec.model_validate(job.spec).identity_spec() == spec.identity_spec() for job in known)

    def validate_model(self, ref: str) -> list[JobRow]:
        """Evaluates a model as its family was last evaluated, and benchmarks it beside its baseline."""
        row = self.get_model(ref)
        return [self.evaluate_model(row.id, self.evaluation_for(row.id)), self.benchmark_models([row.id])]

    def validations(self, ref: str) -> list[JobRow]:
        """Evaluations and benchmarks of a model that are not done yet, the next one first."""
        states, asked = ("running", "starting", "queued", "paused", "pausing"), ("evaluate", "benchmark")
        return jobs.list_jobs(self.store, states, None, operations=asked, parent=self.get_model(ref).id)[::-1]

    def predicted_seconds(self, parent: Ref, preset: str, *, image_size: int | None = None) -> float:
        """Roughly how long a preset's training takes: by the last measured step of this store, else by MACs."""
        on = preset_on(preset, None, image_size)
        chosen = on.retrain
        dense = self.cost(parent, image_size=chosen.image_size)
        cost = self.predict_pruning(parent, on.prune, image_size=chosen.image_size)
        macs = _trained_macs(cost or dense, chosen)
        for job in jobs.list_jobs(self.store, ("done",), 50, operations=("retrain",)):
            if job.model_id and "step_s" in job.result:
                made = self.cost(job.model_id, image_size=int(job.spec["image_size"]))
                spec = RetrainSpec.model_validate(job.spec)
                pace = job.result["step_s"] / (_trained_macs(made, spec) * spec.batch_size)
                return float(pace * macs * chosen.batch_size * chosen.total_steps)
        return 3 * macs * chosen.batch_size * chosen.total_steps / (BACKGROUND_STEP_GMACS_PER_S * 1e9)

    # Jobs -----------------------------------------------------------------------------------------------------------------

    def jobs(self, *, states: Sequence[str] | None = None, limit: int = 50) -> list[JobRow]:
        """Jobs, newest first."""
        return jobs.list_jobs(self.store, states, limit)

    def job(self, ref: str) -> JobRow:
        """A job by id or prefix."""
        return jobs.get_job(self.store, ref)

    def control(self, ref: str, verb: str) -> JobRow:
        """`pause`, `resume`, `cancel` or `checkpoint`; a resumed job finds a worker again."""
        row = jobs.request(self.store, ref, verb)
        if row.state == "queued":
            self._ensure_worker(row.device)
        return row

    def wait(self, ref: str, timeout_s: float | None = None) -> JobRow:
        """Blocks until a job has ended; raises CoreError with the job's own error where it failed or was cancelled."""
        started = time.monotonic()
        while True:
            row = jobs.get_job(self.store, ref)
            if row.state == "done":
                return row
            if row.state in ("failed", "cancelled"):
                error = row.error or {}
                raise CoreError(
                    error.get("message") or f"The job was {row.state}.",
                    code=error.get("code", row.state),
                    given=error.get("given"),
                    legal=error.get("legal"),
                    next=error.get("next"),
                )
            if row.state == "blocked" and row.message and self._is_stuck(row):
                raise CoreError(f"{row.name} cannot start: {row.message}", code="blocked")
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise CoreError(f"{row.name} is {row.state} after {timeout_s:.0f} s.", code="timeout", given=row.id)
            time.sleep(0.05)

    def log(self, ref: str, *, last: int | None = None) -> list[dict[str, str]]:
        """Lines of a job's log: time, level, message."""
        path = self.store.job_folder(jobs.get_job(self.store, ref).id) / "log.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(line) for line in (lines if last is None else lines[-last:])]

    def series(self, ref: str, key: str, *, max_points: int | None = None) -> tuple[list[int], list[float]]:
        """One curve of a job."""
        steps, values = st.metrics.series(self.store, jobs.get_job(self.store, ref).id, key, max_points=max_points)
        return list(steps), list(values)

    def devices(self) -> list[Any]:
        """Devices with their load."""
        return devices()

    def warm(self) -> None:
        """Starts the default device's worker, so that the first job starts at once."""
        self._ensure_worker(default_device(self.settings.device))

    # Inside ---------------------------------------------------------------------------------------------------------------

    def _is_stuck(self, row: JobRow) -> bool:
        return any(jobs.get_job(self.store, need).state in ("failed", "cancelled") for need in row.depends_on)

    def _check_pruning(self, parent: Parent, spec: PruneSpec) -> None:
        if spec.needs_calibration:
            self._check_size(parent, spec.calibration_size)
        if isinstance(parent, str):
            self.predict_pruning(parent, spec)
            if spec.method == "two_four":
                check_two_four(StoredWeights(weights_path(self.store, self.get_model(parent))).shapes, spec)

    def _check_kernels(self, spec: BenchmarkSpec, device: str | None) -> None:
        """Raises CoreError where 2:4 kernels are asked of a device that has none."""
        why = why_no_sparse_kernels(device or default_device(self.settings.device)) if spec.sparse_kernels else None
        if why is not None:
            raise CoreError(
                f"There are no sparse tensor cores: {why}.", code="no_sparse_kernels", given=True,
                legal="an NVIDIA GPU of compute capability 8.0 or newer",
                next="Leave sparse_kernels off: masks hold and the file is smaller without them.",
            )  # fmt: skip

    def _check_size(self, model: Parent, image_size: int) -> None:
        self._check_sizes([model], [image_size])

    def _submit(
        self, spec: Spec, parent: Parent | None, *, device: str | None = None, name: str, interactive: bool = False,
        pause_step: int | None = None,
    ) -> JobRow:  # fmt: skip
        target = device or default_device(self.settings.device)
        known = [found.name for found in devices()]
        if target not in known:
            raise CoreError(f"There is no device {target!r} here.", code="device", given=target, legal=known)
        row = jobs.submit(
            self.store, spec.operation, spec.model_dump(mode="json"), parent=parent, device=target, name=name,
            interactive=interactive, pause_step=pause_step,
        )  # fmt: skip
        self._ensure_worker(target)
        return row

    def _ensure_worker(self, device: str) -> None:
        ensure_worker(self.store, self.settings, device)
        self.ensure_mirror()


def _trained_macs(cost: Cost, spec: RetrainSpec) -> int:
    """Of an image that a step runs through again and again: a frozen encoder's latents are made once."""
    return cost.decode_macs if spec.frozen_part == "encoder" else cost.macs
