"""What a run shows beside its curves, against weights, figures and log of the store; the report and the view as W&B keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from core.compare import compare
from core.mirror import extras
from core.mirror.runs import jobs_of
from core.model_manager import ModelManager
from core.operations.context import log_line
from store import get_model


@pytest.fixture(scope="module")
def pruned(bench):
    """A baseline, its pruned offspring, and both evaluated and timed."""
    baseline = bench.add(name="baseline", seed=3)
    job = bench.run("prune", baseline.id, method="l1_unstructured", rate=0.5)
    for ref in (baseline.id, job.model_id):
        bench.run("evaluate", ref, image_size=32, num_images=8)
    bench.run("benchmark", baseline.id, models=[job.model_id], image_size=32, repeats=3, warmup=1, starts=0)
    return baseline, get_model(bench.store, job.model_id), job


def test_histograms_count_each_weight_that_is_not_zero(bench, pruned):
    baseline, model, _ = pruned
    notes: list[str] = []
    dense, sparse = (extras.weight_histograms(bench.store, row, notes) for row in (baseline, model))
    assert notes == [] and set(dense) == set(sparse) and "encoder.conv_in" in dense
    tensors = load_file(bench.store.blobs.path(baseline.blob_digest))
    matrices = [value.double().numpy().ravel() for value in tensors.values() if value.ndim > 1]
    values = np.concatenate(matrices)
    counts, edges = np.histogram(values[values != 0], bins=extras.NUM_BINS)
    assert dense["all"].counts == tuple(counts.tolist()) and dense["all"].edges == pytest.approx(edges.tolist())
    assert sum(sum(one.counts) for name, one in dense.items() if name != "all") == sum(dense["all"].counts)
    left = model.facts["nonzero_parameters"] - (baseline.facts["nonzero_parameters"] - sum(dense["all"].counts))
    assert sum(sparse["all"].counts) == left < sum(dense["all"].counts)
    assert extras.histogram([0.0, float("nan")]) is None


def test_the_table_holds_baseline_parent_and_candidate(bench, pruned):
    baseline, model, _ = pruned
    table = extras.comparison_table(bench.store, model)
    assert table.columns[2:5] == ("baseline", "parent", "candidate")
    rows = {row[0]: row for row in table.rows}
    assert rows["id"][2:5] == (baseline.id, baseline.id, model.id)
    found = compare(bench.store, [baseline.id, model.id]).figures
    for key in ("psnr_db", "decode_ms", "sparsity"):
        assert rows[key][2:5] == (found[baseline.id][key].value, found[baseline.id][key].value, found[model.id][key].value)
    assert rows["psnr_db"][6] == found[model.id]["psnr_db"].against_baseline


def test_the_log_keeps_warnings_and_milestones(bench, pruned):
    _, _, job = pruned
    assert [line["message"] for line in extras.log_lines(bench.store, job.id)] == [line["message"] for line in bench.log(job)]
    with (bench.store.job_folder(job.id) / "log.jsonl").open("a") as log:
        log.write(log_line("info", "step 7: loss 0.1, lr 0.1") + log_line("warning", "step 8 is slow") + '{"time": "2026')
    told = [line["message"] for line in extras.log_lines(bench.store, job.id)]
    assert told[-1] == "step 8 is slow" and not any("step 7" in message for message in told)


def test_the_report_and_the_view_are_built_without_a_server(bench, pruned):
    baseline, model, _ = pruned
    service = ModelManager(settings=bench.settings.model_copy(update={"mirror": "offline"}))
    made = service.mirror_views([baseline.id, model.id])
    service.store.close()
    assert made.urls == {} and "Not saved" in made.message
    report, view = (json.loads(Path(made.files[kind]).read_text()) for kind in ("report", "workspace"))
    jobs = sorted(jobs_of(bench.store, [baseline.id, model.id]))
    assert len(jobs) == 4

    def filters(value: Any) -> list[Any]:
        if isinstance(value, dict):
            mine = [value["value"]] if value.get("key") == {"section": "config", "name": "job_id"} else []
            return mine + [one for inner in value.values() for one in filters(inner)]
        return [one for inner in value for one in filters(inner)] if isinstance(value, list) else []

    assert filters(report) == [jobs] * 3 and filters(view) == [jobs]
    (table,) = [block["content"] for block in report["spec"]["blocks"] if block["type"] == "markdown-block"]
    found = compare(bench.store, [baseline.id, model.id])
    figure = found.figures[model.id]["psnr_db"]
    assert figure.metric.text(figure.value) in table and figure.change_text(figure.against_baseline) in table
    panels = json.dumps(view)
    for key in ("val_psnr_db", "test/psnr_db", f"benchmark/{model.id}/decode_ms", "reconstructions"):
        assert key in panels, key
