"""Each verb of the service by itself; what it submits runs in this process (real workers: test_service.py)."""

from __future__ import annotations

import ast
import csv
import inspect
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import store as st
from core.compare import METRICS, Figure
from core.errors import CoreError
from core.model_manager import ModelManager
from core.presets import PRESETS
from core.specs import BenchmarkSpec, EvaluateSpec, PruneSpec, RetrainSpec
from core.terminal import demo
from dcaecore import VARIANTS, ConfigError, DCAEConfig, Layout, estimate, load_model, sites
from store import StoreError
from tests.core.in_process import Inline

TINY = VARIANTS["tiny"]
RETRAIN = {
    "image_size": 32, "n_epochs": 1, "steps_per_epoch": 2, "warmup_epochs": 0, "val_steps": 2, "num_workers": 0,
    "num_save_images": 2,
}  # fmt: skip
EVALUATE = {"image_size": 32, "num_images": 4, "num_save_images": 2}
BENCHMARK = {"image_size": 32, "repeats": 3, "warmup": 1, "starts": 0}


@pytest.fixture
def worker(settings, monkeypatch):
    made = Inline(settings)
    monkeypatch.setattr("core.model_manager.ensure_worker", made)
    yield made
    made.bench.store.close()


@pytest.fixture
def manager(settings, worker):
    made = ModelManager(settings=settings)
    yield made
    made.store.close()


@pytest.fixture
def tiny(worker):
    return worker.bench.add()


def test_every_verb_is_called_by_a_test():
    sources = [ast.parse(path.read_text()) for path in Path(__file__).parents[1].rglob("test_*.py")]
    called = {node.attr for source in sources for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    verbs = {name for name, _ in inspect.getmembers(ModelManager, inspect.isfunction) if not name.startswith("_")}
    assert verbs <= called, verbs - called


def test_models_are_found_by_id_prefix_name_and_alias(manager, tiny, worker):
    other = worker.bench.add(seed=1, name="other")
    for ref in (tiny.id, tiny.id[:8], "tiny"):
        assert manager.get_model(ref).id == tiny.id
    assert [row.name for row in manager.list_models()] == ["other", "tiny"]
    assert [row.name for row in manager.list_models(text="tin")] == ["tiny"]
    assert [row.id for row in manager.list_models(limit=1)] == [other.id]


def test_current_is_nothing_then_the_newest_then_the_promoted(manager, worker):
    assert manager.current() is None
    first, second = worker.bench.add(), worker.bench.add(seed=1, name="second")
    assert manager.current().id == second.id
    assert manager.promote("tiny").id == first.id
    assert manager.current().id == first.id == manager.get_model("current").id
    manager.promote(second.id)
    assert manager.current().id == second.id


def test_shape_and_cost_are_arithmetic_on_the_stored_config(manager, tiny):
    assert manager.shape(tiny.id) == (TINY, Layout())
    found = manager.cost(tiny.id, image_size=64, batch_size=2)
    assert found == estimate(TINY, Layout(), image_size=64, batch_size=2)
    assert manager.cost(tiny.id, image_size=1) == estimate(TINY, Layout(), image_size=TINY.spatial_compression)


def test_a_prediction_is_what_the_pruning_makes(manager, tiny):
    for spec in ({"rate": 0.3}, {"rate": 0.7, "part": "decoder"}, {"rate": 0.5, "round_to": 8}):
        predicted = manager.predict_pruning(tiny.id, spec)
        made = manager.get_model(manager.wait(manager.prune_model(tiny.id, spec).id).model_id)
        assert (predicted.parameters, predicted.decode_macs) == (made.facts["parameters"], made.facts["decode_macs"])
        assert predicted.parameters < tiny.facts["parameters"]
    unstructured = manager.predict_pruning(tiny.id, {"method": "global_magnitude"})
    assert unstructured.parameters == tiny.facts["parameters"]
    masked = manager.predict_pruning(tiny.id, {"apply": "mask"})
    assert masked.parameters == tiny.facts["parameters"]
    for how in ("cut", "mask"):
        with pytest.raises(CoreError, match="no site"):
            manager.predict_pruning(tiny.id, {"site_rates": {"middle": 0.5}, "apply": how})


def test_a_teacher_of_another_latent_shape_is_refused_before_anything_is_queued(manager, worker, tiny):
    config = DCAEConfig.from_json({**TINY.to_json(), "latent_channels": TINY.latent_channels * 2})
    other, before = worker.bench.add(config=config), manager.jobs()
    with pytest.raises(ConfigError, match="teacher's latents") as caught:
        manager.retrain_model(tiny.id, {**RETRAIN, "teacher": other.id, "distill_output_weight": 1.0})
    assert caught.value.next and manager.jobs() == before


def test_a_proposal_prunes_to_what_it_predicted(manager, tiny):
    """From the measurements to a model: parameters, MACs and bytes exactly as said, milliseconds with their known error."""
    for ask in (manager.reach, manager.propose):
        with pytest.raises(CoreError, match="never measured"):
            ask(tiny.id, cost="parameters")
    assert (manager.sensitivity(tiny.id), manager.latency(tiny.id)) == (None, None)
    how = {"method": "structured", "score": "l2", "calibration_size": 32, "calibration_images": 32}
    measured = manager.wait(
        manager.measure_sensitivity(
            tiny.id, {"prune": how, "rates": [0.5, 0.75], "granularity": "stage", "image_size": 32, "num_images": 16}
        ).id
    )
    table = manager.sensitivity(tiny.id)
    assert manager.sensitivity_job(tiny.id).id == measured.id
    assert len(table.cells) + len(table.together) == measured.result["cells"] and len(table.together) == 2
    with pytest.raises(CoreError, match="latency profile"):
        manager.propose(tiny.id, at_most=1.0)
    brief = {"image_size": 32, "rates": [0.5], "repeats": 3, "fit_models": 2, "check_models": 2}
    manager.wait(manager.profile_latency(tiny.id, brief).id)
    assert manager.latency(tiny.id, "cuda:7") is None and manager.profile_job(tiny.id).operation == "profile", "of another device"
    least, now = manager.reach(tiny.id, "parameters")
    assert least < now == manager.cost(tiny.id).parameters
    proposal = manager.propose(tiny.id, cost="parameters", at_most=(least + now) / 2)
    row = manager.get_model(manager.wait(manager.prune_model(tiny.id, proposal.spec).id).model_id)
    seen, timed = manager.conditions(tiny.id)
    assert (seen.image_size, seen.split, timed.image_size, timed.batch_size) == (32, "test", 32, 1)
    after = proposal.to_json()["predicted"]
    assert row.facts["parameters"] == after["parameters"] <= (least + now) / 2
    achieved = manager.cost(row.id, image_size=32)
    assert (achieved.decode_macs, achieved.weight_bytes) == (after["decode_macs"], after["weight_bytes"])
    assert after["decode_ms"] > 0 and "mean error over 2 other plans" in proposal.latency_text()
    assert set(proposal.spec.site_rates) == {name for name, site in sites(TINY).items() if site.kind != "stream"}
    assert 0.1 <= proposal.spec.rate <= 0.9 and manager.sensitivity(row.id) is None, "of another model"
    whole = manager.profile_job(tiny.id)
    assert manager.profile_job(row.id).id == whole.id, "whoever is wider knows the narrower one's widths"
    own = manager.wait(manager.profile_latency(row.id, brief).id)
    assert manager.profile_job(row.id).id == own.id and manager.profile_job(tiny.id).id == whole.id, "not the other way round"


def test_each_verb_submits_its_operation_in_full(manager, tiny, worker):
    worker.at_work = False
    chained = manager.prune_model(tiny.id, PruneSpec(rate=0.3), name="mine")
    submitted = {
        "import": manager.import_model("tiny", random_seed=3),
        "prune": chained,
        "retrain": manager.retrain_model({"job": chained.id}, {"batch_size": 2}),
        "evaluate": manager.evaluate_model(tiny.id, EVALUATE),
        "benchmark": manager.benchmark_models([tiny.id], BENCHMARK),
    }
    assert {name: job.operation for name, job in submitted.items()} == {name: name for name in submitted}
    assert {job.device for job in submitted.values()} == {"cpu"} and worker.starts == ["cpu"] * 5
    assert submitted["import"].interactive and not chained.interactive and chained.name == "mine"
    assert submitted["retrain"].parent_job_id == chained.id and submitted["retrain"].state == "blocked"
    assert chained.spec == PruneSpec(rate=0.3).model_dump(mode="json")
    assert submitted["retrain"].spec == RetrainSpec(batch_size=2).model_dump(mode="json")
    assert submitted["evaluate"].spec == EvaluateSpec(**EVALUATE).model_dump(mode="json")
    assert submitted["benchmark"].spec == BenchmarkSpec(**BENCHMARK).model_dump(mode="json")
    assert manager.job(chained.id[:18]).id == chained.id
    assert [job.operation for job in manager.jobs(states=["queued"])] == ["benchmark", "evaluate", "import", "prune"]
    assert len(manager.jobs(limit=2)) == 2
    for call, words in (
        (lambda: manager.prune_model(tiny.id, RetrainSpec()), "spec to retrain, not to prune"),
        (lambda: manager.prune_model(tiny.id, device="cuda:7"), "no device 'cuda:7'"),
        (lambda: manager.retrain_model(tiny.id, {"betas": [0.9, 1.0]}), "betas"),
    ):
        with pytest.raises(CoreError, match=words) as caught:
            call()
        assert caught.value.given is not None
    assert len(manager.jobs()) == 5


def test_an_import_is_waited_for(manager):
    row = manager.initialize_model("tiny", name="mine", random_seed=5)
    assert (row.name, row.kind, row.parent_id) == ("mine", "baseline", None)
    with pytest.raises(CoreError, match="no model"):
        manager.initialize_model("nothing-like-this")


def test_several_models_are_benchmarked_in_one_run(manager, tiny, worker):
    other = worker.bench.add(seed=1, name="other")
    job = manager.wait(manager.benchmark_models([tiny.id, "other"], BENCHMARK).id)
    (found,) = st.scores.measurements(manager.store, tiny.id)
    assert set(found.models) == {tiny.id, other.id} and job.parent_model_id == tiny.id
    comparison = manager.compare([tiny.id, "other"])
    assert [row.id for row in comparison.models] == [tiny.id, other.id]
    assert manager.get_model_metrics(tiny.id)["decode_ms"] == comparison.figures[tiny.id]["decode_ms"].value > 0


def test_a_family_is_compared_with_its_baseline_and_its_parent(manager, tiny):
    half = manager.wait(manager.prune_model(tiny.id, {"rate": 0.5}, name="half").id).model_id
    less = manager.wait(manager.prune_model(half, {"rate": 0.5}, name="less").id).model_id
    assert [row.name for row in manager.ancestry(less)] == ["tiny", "half", "less"]
    assert manager.family(less, []) == [tiny.id, half, less]
    assert manager.family(tiny.id, [less]) == [tiny.id, less]
    parameters = [manager.get_model(ref).facts["parameters"] for ref in (tiny.id, half, less)]
    figure = manager.compare([less]).figures[less]["parameters"]
    assert figure.against_parent == pytest.approx(parameters[2] / parameters[1] - 1)
    assert figure.against_baseline == pytest.approx(parameters[2] / parameters[0] - 1)
    assert figure.better(figure.against_parent) is True
    assert "method l2_structured, rate 0.5" in manager.spec_line(less) and manager.spec_line(less).startswith("prune: ")
    rates = manager.wait(
        manager.prune_model(tiny.id, {"rate": 0.5, "kinds": ["stream"], "site_rates": {"decoder.stream": 0.25}}).id
    ).model_id
    assert "site_rates (decoder.stream 0.25)" in manager.spec_line(rates)


def test_a_change_is_told_in_the_unit_that_it_makes_sense_in():
    told = [
        Figure(METRICS[key], value).change_text(value / before - 1)
        for key, value, before in (("psnr_db", 34.0, 36.5), ("accuracy", 0.9, 0.95), ("decode_ms", 10.0, 20.0))
    ]
    assert told == ["-6.8% (-2.50 dB)", "-5.3% (-5.00 points)", "-50.0%"]


def test_relatives_are_all_of_a_small_store_and_the_line_of_a_large_one(manager, tiny, worker):
    rows = [tiny]
    for rate in (0.3, 0.4, 0.5):
        made = manager.wait(manager.prune_model(rows[-1].id, {"rate": rate}).id).model_id
        rows.append(manager.get_model(made))
    other = worker.bench.add(seed=1, name="other")
    assert [row.id for row in manager.relatives(tiny.id)] == [other.id, *(row.id for row in reversed(rows))]
    assert [row.id for row in manager.relatives(rows[1].id, limit=1)] == [rows[3].id, rows[1].id, rows[0].id]
    assert [row.id for row in manager.relatives(other.id, limit=1)] == [other.id]


def test_what_an_evaluation_left_is_shown(manager, tiny, worker):
    assert manager.evaluation_for(tiny.id) == {"image_size": manager.settings.preset_image_size}
    assert (manager.pictures(tiny.id), manager.image_psnr(tiny.id), manager.baseline_marks(tiny.id)) == ([], [], {})
    manager.wait(manager.evaluate_model(tiny.id, EVALUATE).id)
    assert len(manager.pictures(tiny.id)) == 2 and len(manager.image_psnr(tiny.id)) == 4
    metrics = manager.get_model_metrics(tiny.id)
    assert metrics["psnr_db"] == pytest.approx(sum(manager.image_psnr(tiny.id)) / 4)
    child = manager.wait(manager.prune_model(tiny.id).id).model_id
    assert manager.baseline_marks(child) == {"baseline PSNR": metrics["psnr_db"]}
    # Another family was evaluated since, at a size of its own: figures of one family compare.
    other = worker.bench.add(seed=1, name="other")
    manager.wait(manager.evaluate_model(other.id, {**EVALUATE, "image_size": 64}).id)
    assert manager.evaluation_for(child)["image_size"] == 32 and manager.evaluation_for(other.id)["image_size"] == 64
    # A retraining since then: what was trained on is what is to be looked at, at its size.
    again = manager.wait(manager.retrain_model(child, {**RETRAIN, "image_size": 64, "data": {"split_seed": 5}}).id)
    assert manager.evaluation_for(tiny.id) == {key: again.spec[key] for key in ("data", "image_size")}


def test_what_a_retraining_left_is_shown(manager, tiny):
    job = manager.wait(manager.retrain_model(tiny.id, RETRAIN).id)
    steps, losses = manager.series(job.id, "loss")
    assert steps == [1, 2] and all(isinstance(value, float) for value in losses)
    assert len(manager.series(job.id, "loss", max_points=1)[0]) <= 2
    pictures = manager.job_pictures(job.id)
    assert len(pictures) == 2 and {step for *_, step in pictures} == {2}
    for original, made, _ in pictures:
        assert {Image.open(io.BytesIO(raw)).size for raw in (original, made)} == {(32, 32)}
    lines = manager.log(job.id)
    assert any("validation at step 2" in line["message"] for line in lines) and manager.log(job.id, last=1) == lines[-1:]
    assert manager.job_pictures(manager.prune_model(tiny.id).id) == []
    # The pace of this machine is known now.
    measured = manager.predicted_seconds(tiny.id, "light")
    made = manager.cost(job.model_id, image_size=32)
    chosen = PRESETS["light"]
    macs = manager.predict_pruning(tiny.id, chosen.prune, image_size=chosen.retrain.image_size).decode_macs  # the encoder is held
    expected = job.result["step_s"] / made.macs * macs * chosen.retrain.batch_size * chosen.retrain.total_steps
    assert measured == pytest.approx(expected)


def test_minutes_are_told_before_anything_was_measured(manager, tiny):
    light, medium = (manager.predicted_seconds(tiny.id, preset) for preset in ("light", "medium"))
    assert 0 < light < medium


def test_the_encoder_is_held_where_only_decoders_were_pruned(manager, tiny, worker):
    assert manager.held_part(tiny.id) == "none" and manager.held_part(tiny.id, "decoder") == "encoder"
    assert manager.held_part(tiny.id, "both") == "none"
    of_decoder = manager.wait(manager.prune_model(tiny.id, {"rate": 0.5, "part": "decoder"}).id).model_id
    assert manager.held_part(of_decoder) == "encoder"
    of_both = manager.wait(manager.prune_model(of_decoder, {"rate": 0.2}).id).model_id
    assert manager.held_part(of_both) == manager.held_part(of_both, "decoder") == "none"
    worker.at_work = False
    given = {"retrain": None, "evaluate": EVALUATE, "benchmark": BENCHMARK, "image_size": 32}
    held = [manager.compress(tiny.id, "light", prune=prune, **given) for prune in (None, {"rate": 0.5})]
    parts = [next(job.spec["frozen_part"] for job in chain if job.operation == "retrain") for chain in held]
    assert parts == ["encoder", "none"]


def test_a_queued_job_has_no_log_yet(manager, tiny, worker):
    worker.at_work = False
    assert manager.log(manager.prune_model(tiny.id).id) == []


def test_weights_are_saved_whole_and_nothing_is_overwritten(manager, tiny, tmp_path):
    path = manager.save_to_file(tiny.id, tmp_path)
    assert path == tmp_path / "tiny.safetensors" and path.read_bytes() == manager.weights("tiny")
    assert load_model(path).model.config == TINY
    with pytest.raises(CoreError, match="there already"):
        manager.save_to_file(tiny.id, path)
    with pytest.raises(CoreError, match="could not be written") as caught:
        manager.save_to_file(tiny.id, tmp_path / "none" / "x.safetensors")
    assert caught.value.code == "write" and not (tmp_path / "none").exists()


def test_weights_that_are_gone_or_changed_are_told(manager, tiny):
    edges, counts, zeros = manager.weight_histogram(tiny.id)
    state = load_model(manager.store.blobs.path(tiny.blob_digest)).model.state_dict()
    weights = torch.cat([value.flatten() for name, value in state.items() if name.endswith("weight") and value.ndim > 1])
    assert sum(counts) == weights.numel() and zeros == 0 and edges[0] == pytest.approx(float(weights.min()))
    assert manager.verify() == [] == manager.verify(tiny.id)
    path = manager.store.blobs.path(tiny.blob_digest)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    assert [problem.code for problem in manager.verify(tiny.id)] == ["broken_blob"]
    path.unlink()
    for call in (manager.weights, manager.weight_histogram):
        with pytest.raises(CoreError, match="not in the store any more"):
            call(tiny.id)
    assert [problem.code for problem in manager.verify()] == ["missing_blob"]


def test_jobs_are_paused_resumed_and_cancelled(manager, tiny, worker):
    worker.at_work = False
    job = manager.prune_model(tiny.id)
    assert manager.control(job.id, "pause").state == "paused" and len(worker.starts) == 1
    worker.at_work = True
    assert manager.control(job.id, "resume").state == "queued" and len(worker.starts) == 2  # a resumed job finds a worker
    assert manager.wait(job.id).state == "done"
    with pytest.raises(StoreError, match="nothing to cancel"):
        manager.control(job.id, "cancel")


def test_waiting_ends_with_the_jobs_own_error(manager, tiny, worker, tmp_path):
    worker.at_work = False
    job = manager.prune_model(tiny.id)
    with pytest.raises(CoreError, match="is queued after 0 s") as caught:
        manager.wait(job.id, timeout_s=0.0)
    assert caught.value.code == "timeout"
    manager.control(job.id, "cancel")
    with pytest.raises(CoreError, match="cancelled"):
        manager.wait(job.id)
    worker.at_work = True
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    failed = manager.retrain_model(tiny.id, {**RETRAIN, "data": {"kind": "parquet", "location": str(tmp_path / "cut.parquet")}})
    with pytest.raises(CoreError, match="no readable parquet"):
        manager.wait(failed.id)
    with pytest.raises(CoreError, match="cannot start: Waits for .* failed") as caught:
        manager.wait(manager.evaluate_model({"job": failed.id}, EVALUATE).id)
    assert caught.value.code == "blocked"


def test_words_on_a_model_change_nothing_else(manager, tiny):
    manager.annotate(tiny.id, note="good on ghosts", tag="keep")
    row = manager.get_model(tiny.id)
    assert row.note == "good on ghosts" and "keep" in row.tags and row.id == tiny.id
    manager.annotate(tiny.id, tag="second")
    assert manager.get_model(tiny.id).note == "good on ghosts"
    assert manager.verify() == []


def test_deleting_takes_what_was_said_and_leaves_a_tombstone(manager, tiny, worker):
    half = manager.wait(manager.prune_model(tiny.id, name="half").id).model_id
    manager.wait(manager.prune_model(half, name="less").id)
    worker.at_work = False
    waiting = manager.evaluate_model(half, EVALUATE)
    told = manager.deletion(half)
    assert set(told.names) == {"half", "less"} and told.bytes > 0 and len(told.jobs_in_the_way) == 1
    with pytest.raises(StoreError):
        manager.delete(half)
    manager.control(waiting.id, "cancel")
    assert len(manager.delete(half)) == 2
    assert [row.name for row in manager.list_models()] == ["tiny"] and manager.verify() == []
    with pytest.raises(StoreError, match="deleted"):
        manager.get_model(half)


def test_a_chain_evaluates_what_never_was_and_takes_given_specs(manager, tiny):
    light = {"prune": {"rate": 0.3}, "retrain": RETRAIN, "evaluate": EVALUATE, "benchmark": BENCHMARK}
    first = manager.compress(tiny.id, "light", **light)
    assert [job.operation for job in first] == ["evaluate", "prune", "retrain", "evaluate", "benchmark"]
    assert {manager.wait(job.id).state for job in first} == {"done"}
    made = manager.wait(first[2].id).model_id
    again = manager.compress(made, "light", **light)
    # Both the parent and the baseline have figures by now.
    assert [job.operation for job in again] == ["prune", "retrain", "evaluate", "benchmark"]
    assert again[0].parent_model_id == made and again[0].spec["rate"] == 0.3
    other = {**light, "evaluate": {**EVALUATE, "num_images": EVALUATE["num_images"] - 1}}
    elsewise = manager.compress(made, "light", **other)
    # Figures of other images say nothing beside the new ones.
    assert [job.operation for job in elsewise][:3] == ["evaluate", "evaluate", "prune"]
    with pytest.raises(CoreError, match="no preset") as caught:
        manager.compress(tiny.id, "gigantic")
    assert caught.value.legal == sorted(PRESETS)


def test_a_schedule_is_one_chain_that_ends_where_one_shot_does(manager, tiny):
    short = {**RETRAIN, "steps_per_epoch": 5}
    given = {"evaluate": EVALUATE, "benchmark": BENCHMARK}
    chain = manager.prune_in_rounds(tiny.id, {"rate": 0.5}, short, schedule="linear", rounds=2, **given)
    assert [job.operation for job in chain] == ["evaluate", *["prune", "retrain"] * 2, "evaluate", "benchmark"]
    assert {manager.wait(job.id).state for job in chain} == {"done"}
    made = [manager.get_model(manager.job(job.id).model_id) for job in chain[1:5]]
    assert [row.id for row in manager.ancestry(made[-1].id)] == [tiny.id, *(row.id for row in made)]
    assert [row.name.split("_")[1:-1] for row in made] == [
        ["l2structured-linear-1of2", "0.25"], ["retrained-linear-1of2"], ["l2structured-linear-2of2", "0.50"],
        ["retrained-linear-2of2"],
    ]  # fmt: skip
    assert [manager.job(job.id).result["steps"] for job in chain if job.operation == "retrain"] == [2, 3]
    once = manager.get_model(manager.wait(manager.prune_model(tiny.id, {"rate": 0.5}).id).model_id)
    widths = [{name: len(units) for name, units in row.layout["kept"].items()} for row in (*made, once)]
    assert widths[0] == widths[1] == {} and widths[2] == widths[3] == widths[4] != {}
    masked, final = (load_model(manager.store.blobs.path(row.blob_digest)) for row in (made[1], made[3]))
    assert masked.masks and not final.masks and final.model.layout.held == {}
    assert sum(manager.weight_histogram(made[0].id)[1]) + manager.weight_histogram(made[0].id)[2] == sum(
        manager.weight_histogram(tiny.id)[1]
    )
    assert "apply mask" in manager.spec_line(made[0].id)
    assert manager.get_model_metrics(made[3].id)["decode_ms"] > 0


def test_a_round_that_cannot_be_is_refused_before_any_job(manager, tiny):
    for spec, words in (
        ({"rate": 0.3}, "4 rounds are too many"),
        ({"rate": 0.6, "site_rates": {"middle": 0.3}}, "no site"),
        ({"rate": 0.6, "kinds": ["stream"]}, "needs stream_norms exact"),
    ):
        with pytest.raises(CoreError, match=words):
            manager.prune_in_rounds(tiny.id, spec, RETRAIN | {"steps_per_epoch": 9}, schedule="linear")
    for plan, words in (
        ({"schedule": "often"}, "schedule: "),
        ({"rounds": 99}, "rounds: "),
        ({"schedule": "one-shot", "rounds": 2}, "no eff"),
    ):
        with pytest.raises(CoreError, match=words):
            manager.prune_in_rounds(tiny.id, {}, RETRAIN, **plan)
    with pytest.raises(CoreError, match="2 steps of retraining are too few"):
        manager.prune_in_rounds(tiny.id, {}, RETRAIN)
    assert manager.jobs() == []


def test_validation_is_that_of_the_family_and_a_benchmark(manager, tiny, worker):
    manager.wait(manager.evaluate_model(tiny.id, EVALUATE).id)
    pruned = manager.wait(manager.prune_model(tiny.id, {"rate": 0.3}).id).model_id
    worker.at_work = False
    evaluation, benchmark = manager.validate_model(pruned)
    assert [job.id for job in manager.validations(pruned)] == [evaluation.id, benchmark.id] and manager.validations(tiny.id) == []
    worker.at_work = True
    manager.warm()
    manager.wait(benchmark.id)
    assert manager.validations(pruned) == []
    assert evaluation.spec == EvaluateSpec(**EVALUATE).model_dump(mode="json") and evaluation.parent_model_id == pruned
    (measured,) = st.scores.measurements(manager.store, pruned)
    assert measured.job_id == benchmark.id and set(measured.models) == {tiny.id, pruned}


def test_a_chain_looks_at_the_users_images_in_each_step(manager, tiny, worker, tmp_path):
    worker.at_work = False
    (tmp_path / "mine.parquet").touch()
    data = {"kind": "parquet", "location": str(tmp_path / "mine.parquet"), "column": "picture"}
    chain = manager.compress(tiny.id, "medium", data=data, image_size=64)
    specs = {job.operation: job.spec for job in chain}
    for found in (
        specs["prune"]["calibration_data"],
        specs["retrain"]["data"],
        *(j.spec["data"] for j in chain if j.operation == "evaluate"),
    ):
        assert {key: found[key] for key in data} == data
    sizes = [specs["prune"]["calibration_size"], *(job.spec["image_size"] for job in chain if job.operation != "prune")]
    assert sizes == [64] * 5


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_it_says(manager, tiny, worker, preset):
    worker.at_work = False
    chain = {job.operation: job for job in manager.compress(tiny.id, preset)}
    assert chain["prune"].spec == PRESETS[preset].prune.model_dump(mode="json")
    assert chain["retrain"].spec == PRESETS[preset].retrain.model_dump(mode="json")
    assert chain["retrain"].parent_job_id == chain["prune"].id
    assert chain["evaluate"].parent_job_id == chain["benchmark"].parent_job_id == chain["retrain"].id


def test_devices_and_a_warm_worker(manager, worker):
    assert [device.name for device in manager.devices()][-1] == "cpu"
    manager.warm()
    assert worker.starts == ["cpu"]


def test_a_folder_may_be_given_instead_of_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = ModelManager(tmp_path / "there")
    assert made.settings.home == made.store.root == tmp_path / "there"
    made.store.close()


def test_the_shipped_recipe_is_one_command(manager, worker, tmp_path, monkeypatch):
    assert all(RetrainSpec.model_validate(phase) for phase in json.loads(demo.RECIPE.read_text()))
    (tmp_path / "recipe.json").write_text(json.dumps([RETRAIN, {**RETRAIN, "seed": 1}]))
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "recipe.json")
    monkeypatch.setattr(demo, "DEMO_VARIANT", "tiny")
    made = demo.train_demo(manager, follow=lambda job: manager.wait(job.id))
    blank, first, last = manager.ancestry(made.id)
    assert (blank.kind, last.id) == ("baseline", made.id) and first.spec["seed"] == 0 and last.spec["seed"] == 1
    rows = list(csv.DictReader((manager.store.root / "curve.csv").read_text().splitlines()))
    steps = [(row["phase"], int(row["step"])) for row in rows]
    total = RETRAIN["n_epochs"] * RETRAIN["steps_per_epoch"]
    assert steps[0] == ("1", 0) and steps[-1] == ("2", 2 * total) and ("2", total) in steps
    assert all(float(row["psnr_db"]) > 0 for row in rows)
