"""Predicted beside achieved: what the solver's prunings became, from the store."""

from __future__ import annotations

import pytest

import store as st
from core.solver.sensitivity import METRICS

HOW = {"method": "structured", "score": "l2", "compensate": False, "part": "decoder", "kinds": ["mid"]}
SEEN = {"image_size": 32, "num_images": 24}
COUNTED = ("parameters", "encode_macs", "decode_macs", "weight_bytes")


@pytest.fixture(scope="module")
def tiny(bench):
    return bench.add()


def test_without_a_sensitivity_there_is_nothing_to_compare(service, tiny):
    assert service.outcomes(tiny.id) == []


@pytest.fixture(scope="module")
def solved(bench, service, tiny):
    """A model that was measured, and one that the solver made of it in a chain of jobs."""
    bench.run("sensitivity", tiny.id, prune=HOW, rates=[0.25, 0.5], **SEEN)
    bench.run(
        "profile", tiny.id, part="decoder", rates=[0.5], repeats=3, fit_models=2, check_models=2, image_size=32, batch_size=2
    )
    least, now = service.reach(tiny.id, "decode_macs")
    proposal = service.propose(tiny.id, cost="decode_macs", at_most=(least + now) / 2)
    chain = service.prune_as_proposed(tiny.id, proposal)
    assert [job.operation for job in chain] == ["prune", "evaluate", "evaluate", "benchmark"]
    done = [bench.perform(bench.claim()) for _ in chain]
    return proposal, done


def test_what_is_counted_is_exact_and_the_rest_is_measured_of_both(service, tiny, solved):
    proposal, done = solved
    (found,) = service.outcomes(tiny.id)
    assert found.model.id == done[0].model_id and found.retrained == {}
    before, after = proposal.solution.before, proposal.solution.after
    assert {key: pair for key, pair in found.predicted.items()} == {
        key: pytest.approx((before[key], value), rel=1e-12) for key, value in after.items()
    }
    assert all(found.achieved[key] == found.predicted[key] for key in COUNTED)
    (run,) = st.scores.measurements(service.store, found.model.id)
    assert set(run.models) == {tiny.id, found.model.id} and run.settings["batch_size"] == 2
    assert found.achieved["decode_ms"] == tuple(run.models[ref]["decode_ms"] for ref in (tiny.id, found.model.id))
    for key in METRICS:
        measured = tuple(st.scores.scores(service.store, ref)[key] for ref in (tiny.id, found.model.id))
        assert found.achieved[key] == measured and measured[0] != measured[1]
    predicted, achieved = found.changes("decode_macs")
    assert predicted == achieved and predicted.startswith("-")
    assert found.changes("psnr_db")[1].endswith(" dB") and found.changes("encode_ms") == ("–", "–")


def test_a_second_one_measures_its_parent_no_more_and_the_newest_comes_first(bench, service, tiny, solved):
    least, now = service.reach(tiny.id, "parameters")
    proposal = service.propose(tiny.id, cost="parameters", at_most=least + 0.9 * (now - least))
    chain = service.prune_as_proposed(tiny.id, proposal)
    assert [job.operation for job in chain] == ["prune", "evaluate", "benchmark"]
    done = [bench.perform(bench.claim()) for _ in chain]
    assert [one.model.id for one in service.outcomes(tiny.id)] == [done[0].model_id, solved[1][0].model_id]
    assert [one.model.id for one in service.outcomes(tiny.id, limit=1)] == [done[0].model_id]


def test_other_ways_of_pruning_are_no_outcomes_and_a_retrained_child_is_told_beside(bench, service, tiny, solved):
    before = [one.model.id for one in service.outcomes(tiny.id)]
    bench.run("prune", tiny.id, **{**HOW, "score": "l1"}, rate=0.5)
    bench.run("prune", tiny.id, method="l1_unstructured", rate=0.5)
    assert [one.model.id for one in service.outcomes(tiny.id)] == before
    made = solved[1][0].model_id
    spec = {"image_size": 32, "n_epochs": 1, "steps_per_epoch": 2, "warmup_epochs": 0, "val_steps": 2, "num_workers": 0}
    trained = bench.run("retrain", made, **spec).model_id
    found = next(one for one in service.outcomes(tiny.id) if one.model.id == made)
    assert found.retrained == {}, "it was not evaluated yet"
    bench.run("evaluate", trained, image_size=32)
    learnt = bench.run("retrain", tiny.id, **spec, seed=3, teacher=made, distill_output_weight=1.0).model_id
    bench.run("evaluate", learnt, image_size=32)
    found = next(one for one in service.outcomes(tiny.id) if one.model.id == made)
    assert found.retrained["psnr_db"][1] == st.scores.scores(service.store, trained)["psnr_db"] != found.achieved["psnr_db"][1]


def test_milliseconds_under_other_conditions_are_not_taken(bench, service, tiny, solved):
    made = solved[1][0].model_id
    (before,) = [one.achieved["decode_ms"] for one in service.outcomes(tiny.id) if one.model.id == made]
    bench.run("benchmark", made, image_size=64, repeats=3, warmup=1, starts=0, batch_size=2)
    bench.run("benchmark", made, image_size=32, repeats=3, warmup=1, starts=0, batch_size=2, with_baseline=False)
    (after,) = [one.achieved["decode_ms"] for one in service.outcomes(tiny.id) if one.model.id == made]
    assert after == before


def test_where_weights_were_cleaned_away_the_rest_still_stands(bench, service, tiny, solved):
    row = st.get_model(service.store, solved[1][0].model_id)
    bench.store.blobs.remove(row.blob_digest)
    found = next(one for one in service.outcomes(tiny.id) if one.model.id == row.id)
    assert "weight_bytes" not in found.achieved and found.changes("weight_bytes")[1] == "–"
    assert found.achieved["parameters"] == found.predicted["parameters"] and "psnr_db" in found.achieved
