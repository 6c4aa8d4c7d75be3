"""2:4: exactly two of each four input channels, by magnitude; layers that cannot take it are named."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import store.jobs as jobs
from core.errors import CoreError
from core.mirror.runs import run_name
from core.operations.models import load
from core.pruning.masks import shapes_of, two_four
from core.pruning.prunable import prunable, unfit
from core.specs import PruneSpec
from core.views import Views


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_two_of_each_four_stay_under_ties_and_zeros(data):
    shape = data.draw(st.tuples(st.integers(1, 3), st.sampled_from([4, 8, 12]), st.integers(1, 2), st.integers(1, 2)))
    count = shape[0] * shape[1] * shape[2] * shape[3]
    value = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))).float().reshape(shape)
    mask = two_four({"a.weight": value})["a.weight"]
    assert mask.shape == value.shape and mask.dtype == torch.bool
    for out in range(shape[0]):
        for row in range(shape[2]):
            for column in range(shape[3]):
                for start in range(0, shape[1], 4):
                    own = value[out, start : start + 4, row, column].abs().tolist()
                    kept = mask[out, start : start + 4, row, column].nonzero()[:, 0].tolist()
                    # An independent rule: the largest first, of equal ones the lower index.
                    assert kept == sorted(sorted(range(4), key=lambda i: (-own[i], i))[:2])


def test_linear_layers_go_by_input_features_and_others_are_unfit():
    state = {
        "linear.weight": torch.arange(1.0, 9.0)[None],
        "rgb.weight": torch.ones(4, 3, 3, 3),
        "depthwise.weight": torch.ones(8, 1, 3, 3),
    }
    assert two_four(state)["linear.weight"].tolist() == [[False, False, True, True] * 2]
    assert set(two_four(state)) == {"linear.weight"} and unfit(shapes_of(state)) == ["depthwise.weight", "rgb.weight"]
    with pytest.raises(CoreError, match="not finite"):
        two_four({"linear.weight": torch.full((1, 4), torch.nan)})


@pytest.fixture(scope="module")
def parent(bench):
    return bench.add()


def test_unfit_layers_are_refused_by_name_or_stay_whole_and_are_logged(bench, parent):
    state = load(bench.store, parent.id).model.state_dict()
    whole = unfit(shapes_of(state))
    assert "encoder.conv_in.conv.weight" in whole and sum("depthwise" in name for name in whole) == 2
    with pytest.raises(CoreError, match=f"{len(whole)} layers cannot be pruned 2:4.*{', '.join(whole)}") as caught:
        bench.run("prune", parent.id, method="two_four")
    assert caught.value.given == whole and "skip_unfit" in caught.value.next
    job = bench.run("prune", parent.id, method="two_four", skip_unfit=True)
    made = load(bench.store, job.model_id)
    assert set(made.masks) == set(prunable(shapes_of(state))) - set(whole)
    assert all(int(mask.sum()) * 2 == mask.numel() for mask in made.masks.values())
    weights = sum(mask.numel() for mask in made.masks.values())
    assert job.result["zeroed_weights"] == weights // 2
    assert job.result["achieved_rate"] == pytest.approx(
        weights / 2 / sum(state[name].numel() for name in prunable(shapes_of(state)))
    )
    assert made.row.facts["sparsity"] == pytest.approx(weights / 2 / made.row.facts["parameters"], abs=0.01)
    assert any(f"{len(whole)} layers stay whole" in line["message"] and whole[-1] in line["message"] for line in bench.log(job))


def test_unfit_layers_are_refused_before_anything_is_queued(bench, parent, service):
    for submit in (service.prune_model, partial(service.prune_in_rounds, schedule="one-shot")):
        queued = len(jobs.list_jobs(bench.store, ("queued",), None))
        with pytest.raises(CoreError, match="layers cannot be pruned 2:4") as caught:
            submit(parent.id, {"method": "two_four"})
        assert "encoder.conv_in.conv.weight" in caught.value.given
        assert len(jobs.list_jobs(bench.store, ("queued",), None)) == queued


def test_its_name_claims_no_ratio_that_nobody_asked_for(bench, parent):
    job = bench.run("prune", parent.id, method="two_four", skip_unfit=True, part="decoder")
    row = load(bench.store, job.model_id).row
    assert row.name.startswith("dcae_twofour_2") and "0.50" not in row.name
    views = Views.__new__(Views)
    views.store = bench.store
    assert "rate" not in views.spec_line(row.id) and "method two_four" in views.spec_line(row.id)
    assert run_name(bench.store, job).startswith(f"dcae_twofour_{row.facts['sparsity']:.2f}_")


def test_masks_of_the_parent_hold_and_a_model_that_is_2_4_is_told_so(bench, parent):
    sparse = load(bench.store, bench.run("prune", parent.id, method="l1_unstructured", rate=0.7).model_id)
    made = load(bench.store, bench.run("prune", sparse.row.id, method="two_four", skip_unfit=True).model_id)
    assert not any((made.masks[name] & ~mask).any() for name, mask in sparse.masks.items())
    with pytest.raises(CoreError, match="2:4 already"):
        bench.run("prune", made.row.id, method="two_four", skip_unfit=True)


@pytest.mark.parametrize(
    "fields",
    [{"method": "two_four", "rate": 0.3}, {"method": "two_four", "apply": "mask"}, {"skip_unfit": True},
     {"method": "global_magnitude", "apply": "mask"}],
)  # fmt: skip
def test_options_without_effect_are_refused(fields):
    with pytest.raises(ValidationError, match="would have no effect: it applies where method is"):
        PruneSpec.model_validate(fields)
    assert PruneSpec(method="two_four").rate == 0.5
