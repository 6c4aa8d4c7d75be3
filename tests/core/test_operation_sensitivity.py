"""Sensitivity and profile jobs, and the pruning that the solver proposes from them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import store as st
from core.operations.context import Context, Paused
from core.solver.latency import LatencyTable, group_of
from core.solver.sensitivity import SensitivityTable
from core.specs import ProfileSpec, PruneSpec, SensitivitySpec
from dcaecore import VARIANTS, Layout, sites
from dcaecore.cost import module_costs

TINY = VARIANTS["tiny"]
DATA = {"image_size": 32, "num_images": 16}
PLAIN = {"method": "structured", "score": "l2", "compensate": False, "part": "decoder", "kinds": ["mid"]}
FITTED = {**PLAIN, "compensate": True, "calibration_size": 32, "calibration_images": 32}


@pytest.fixture(scope="module")
def parent(bench):
    return bench.add()


def table_of(bench, job) -> SensitivityTable:
    return SensitivityTable.from_json(json.loads(bench.store.blobs.read(job.result["table_digest"])))


def test_a_cell_is_what_pruning_that_site_alone_gives(bench, parent):
    table = table_of(bench, bench.run("sensitivity", parent.id, prune=PLAIN, rates=[0.5], **DATA))
    names = [name for name, site in sites(TINY).items() if site.coder == "decoder" and site.kind == "mid"]
    assert list(table.knobs) == names and len(table.cells) == len(names) and table.metrics
    alone = {**PLAIN, "method": "structured", "rate": 0.5, "site_rates": {"decoder.mid": 0.0, names[0]: 0.5}}
    made = bench.run("prune", parent.id, **alone)
    bench.run("evaluate", made.model_id, split="validation", num_save_images=0, **DATA)
    expected = st.scores.scores(bench.store, made.model_id, "validation")
    assert table.cells[0].figures == {name: pytest.approx(expected[name], abs=1e-4) for name in table.metrics}
    assert table.cells[0].share == pytest.approx(0.5)
    made = bench.run("prune", parent.id, rate=0.5, **PLAIN)
    bench.run("evaluate", made.model_id, split="validation", num_save_images=0, **DATA)
    expected = st.scores.scores(bench.store, made.model_id, "validation")
    (together,) = table.together
    assert together.figures == {name: pytest.approx(expected[name], abs=1e-4) for name in table.metrics}


def test_fits_and_stages_are_measured_too(bench, parent):
    plain = table_of(bench, bench.run("sensitivity", parent.id, prune=PLAIN, rates=[0.75], **DATA))
    fitted = table_of(bench, bench.run("sensitivity", parent.id, prune=FITTED, rates=[0.75], **DATA))
    stages = table_of(bench, bench.run("sensitivity", parent.id, prune=FITTED, rates=[0.75], granularity="stage", **DATA))
    assert [c.figures for c in plain.cells] != [c.figures for c in fitted.cells]
    assert all(knob.endswith(".mid") and "blocks" not in knob for knob in stages.knobs)
    assert sorted(name for names in stages.knobs.values() for name in names) == sorted(fitted.knobs)


def test_streams_are_measured_with_everything_fitted_anew(bench, parent):
    how = {**FITTED, "kinds": ["stream"], "stream_norms": "exact", "score": "taylor"}
    table = table_of(bench, bench.run("sensitivity", parent.id, prune=how, rates=[0.5], **DATA))
    assert all(name.endswith(".stream") for name in table.knobs) and all(0 < c.share <= 0.5 for c in table.cells)


class PausesAfterTwo(Context):
    """A job that is paused off its device when two cells are done."""

    def check(self) -> None:
        path = self.folder / "cells.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= 2:
            raise Paused


def test_a_resumed_job_keeps_the_cells_that_are_done(bench, parent):
    whole = bench.run("sensitivity", parent.id, prune=FITTED, rates=[0.25, 0.5], **DATA)
    bench.submit("sensitivity", parent.id, prune=FITTED, rates=[0.25, 0.5], **DATA)
    job = bench.claim()
    bench.perform(job, PausesAfterTwo)
    cells = bench.store.job_folder(job.id) / "cells.jsonl"
    first, second = cells.read_text().splitlines()
    knob, rate, share, figures = json.loads(second)
    marked = json.dumps([knob, rate, share, {**figures, "psnr_db": 12.5}])
    cells.write_text(f'{first}\n{marked}\n["torn')
    done = table_of(bench, bench.perform(job))
    assert done.cells[1].figures["psnr_db"] == 12.5, "it was not measured again"
    expected = table_of(bench, whole)
    assert [c for c in done.cells if c != done.cells[1]] == [c for c in expected.cells if c != expected.cells[1]]


@pytest.mark.parametrize("streams", [False, True])
def test_a_profile_covers_every_block_of_any_plan(bench, parent, streams):
    job = bench.run(
        "profile", parent.id, image_size=32, rates=[0.5, 0.75], repeats=3, fit_models=3, check_models=4, streams=streams
    )
    table = LatencyTable.from_json(json.loads(bench.store.blobs.read(job.result["table_digest"])))
    assert set(table.groups) == {group_of(row) for row in module_costs(TINY, Layout(), 32)}
    for points in table.groups.values():
        axes = [np.unique(axis) for axis in np.array(list(points)).T]
        assert len(points) == np.prod([len(axis) for axis in axes]), "the grid is whole"
    assert len(table.groups["decoder.stages.1.blocks.*"]) == (9 if streams else 3)
    assert len(table.groups["decoder.stages.1.up"]) == (9 if streams else 1)
    assert all(ms > 0 for points in table.groups.values() for ms in points.values())
    assert len(table.checks) == 2 * 4 and set(job.result["errors"]) == {"encoder", "decoder"}
    assert all(check["predicted_ms"] > 0 and check["measured_ms"] > 0 for check in table.checks)
    assert table.protocol["device"] == "cpu" and table.protocol["image_size"] == 32


def test_half_a_profile(bench, parent):
    job = bench.run("profile", parent.id, image_size=32, rates=[0.5], repeats=3, fit_models=2, check_models=2, part="decoder")
    assert set(job.result["errors"]) == {"decoder"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rates": [0.0]}, "rates lie in"),
        ({"rates": []}, "at least 1"),
        ({"prune": PruneSpec(method="l1_unstructured")}, "structured pruning"),
        ({"prune": {"method": "structured", "rate": 0.3}}, "prune.rate would have no effect"),
        ({"prune": {"method": "structured", "site_rates": {"mid": 0.3}}}, "prune.site_rates would have no effect"),
    ],
)
def test_sensitivity_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SensitivitySpec.model_validate(fields)


def test_rates_are_sorted_and_unlike():
    assert SensitivitySpec(rates=(0.5, 0.25, 0.5)).rates == (0.25, 0.5)
    assert ProfileSpec(rates=(0.5, 0.25)).rates == (0.25, 0.5)
    with pytest.raises(ValueError, match="rates lie over"):
        ProfileSpec(rates=(0.0,))
