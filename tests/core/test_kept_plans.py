"""A pruning's units kept again: in the same family, by the model's name or the plan's, and refused elsewhere with the reason."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

import store as st
import store.jobs as jobs
from core.errors import CoreError
from core.kept_plans import plan_of, spec_of_choice
from core.mirror.runs import run_name
from core.operations.models import load
from core.pruning.masks import apply_masks
from core.pruning.surgery import cut, zero
from core.reproduction import chain_of
from core.specs import PruneSpec
from dcaecore import VARIANTS, Layout
from pages.ui.forest import draw
from store import StoreError, open_store
from store.archive import export_branch, import_archive
from store.deletion import delete_model, restore

RETRAIN = {
    "image_size": 32, "batch_size": 2, "n_epochs": 1, "steps_per_epoch": 2, "warmup_epochs": 0, "init_lr": 1e-2, "val_steps": 2,
    "num_workers": 0, "num_save_images": 0,
}  # fmt: skip
HOW = {"method": "structured", "score": "random", "compensate": False, "part": "decoder", "rate": 0.4}


@pytest.fixture(scope="module")
def family(bench):
    """A baseline, the same trained on, and a pruning of the baseline."""
    base = bench.add()
    trained = bench.run("retrain", base.id, **RETRAIN).model_id
    pruned = bench.run("prune", base.id, **HOW)
    return base.id, trained, pruned


def test_the_same_units_of_a_model_that_was_trained_on(bench, service, family):
    base, trained, pruned = family
    plan = service.plan_of(pruned.model_id)
    assert plan.parent == base and plan.id == pruned.result["plan"]
    predicted = service.predict_pruning(trained, {"plan": pruned.model_id})
    job = service.prune_model(trained, {"plan": pruned.model_id[:10]})
    assert job.name.startswith("dcae_randomstructured-again_0.40_")
    job = bench.perform(bench.claim())
    made, dense = load(bench.store, job.model_id), load(bench.store, trained).model
    expected = cut(dense.state_dict(), dense.config, Layout(), plan.keep)
    assert made.model.layout == expected.layout == load(bench.store, pruned.model_id).model.layout
    assert all(torch.equal(value, expected.state[name]) for name, value in made.model.state_dict().items())
    assert made.row.parents == (("parent", trained), ("plan", pruned.model_id)) and made.row.parent_id == trained
    assert made.row.spec["plan"] == pruned.model_id and made.row.facts["parameters"] == predicted.parameters
    assert job.result["achieved_rate"] == pruned.result["achieved_rate"]
    assert service.plan_of(job.model_id).keep == plan.keep and service.plan_of(job.model_id).parent == trained
    assert any(f"By plan {plan.id}" in line["message"] for line in bench.log(job))
    assert pruned.model_id in {row.id for row in st.ancestors(bench.store, job.model_id)} and st.verify(bench.store) == []
    # What the pruning was of, and its rate, are those of the pruning that chose the units.
    assert spec_of_choice(bench.store, made.row.spec)["score"] == "random"
    assert service.held_part(job.model_id) == "encoder" == {"decoder": "encoder"}[service.pruned_part(made.row.spec)]
    assert "_0.40_" in run_name(bench.store, job)
    again = service.prune_model(base, {"plan": job.model_id})
    assert again.name.startswith("dcae_randomstructured-again_0.40_") and bench.perform(bench.claim()).model_id


def test_a_plan_is_named_by_its_own_id_too(bench, service, family):
    _, trained, pruned = family
    plan = pruned.result["plan"]
    assert service.plan_of(plan) == service.plan_of(plan[:9]) == service.plan_of(pruned.model_id)
    assert service.prune_model(trained, {"plan": plan}).spec["plan"] == pruned.model_id, "recorded as the model, whoever named it"
    bench.perform(bench.claim())
    with pytest.raises(CoreError, match="There is no plan 'p_ffffffffff': no pruning of this store had it"):
        service.prune_model(trained, {"plan": "p_ffffffffff"})
    for unknown in ("p_", plan[:5], "m_ffffffffffff"):
        with pytest.raises(StoreError, match="No model"):
            service.prune_model(trained, {"plan": unknown})
    st.set_alias(bench.store, "p_best", pruned.model_id)
    assert service.plan_of("p_best").id == plan, "an alias may begin like a plan's id"
    sparse = bench.run("prune", trained, method="l1_unstructured").model_id
    for ref in (trained, sparse):
        with pytest.raises(CoreError, match="has no plan: it was not made by structured pruning"):
            service.prune_model(trained, {"plan": ref})


def test_another_model_is_refused_with_the_reason_before_anything_is_queued(bench, service, family):
    base, trained, pruned = family
    other = bench.add(seed=7, name="other").id
    larger = bench.add(VARIANTS["demo-f32c32"], name="larger").id
    count = len(service.jobs(limit=1000))
    for ref, code, said in (
        (
            other,
            "plan_family",
            f"{pruned.result['plan']} was made for another model .{base}.: it goes back to tiny, other to other",
        ),
        (pruned.model_id, "plan_layout", "the layouts differ"),
        (larger, "plan_config", "the configs differ"),
    ):
        for ask in (
            lambda ref=ref: service.prune_model(ref, {"plan": pruned.model_id}),
            lambda ref=ref: service.predict_pruning(ref, {"plan": pruned.model_id}),
            lambda ref=ref: service.compress(ref, prune={"plan": pruned.model_id}, image_size=32),
        ):
            with pytest.raises(CoreError, match=said) as caught:
                ask()
            assert caught.value.code == code and caught.value.next
    assert len(service.jobs(limit=1000)) == count
    with pytest.raises(CoreError, match="units are the same only within one family"):
        bench.run("prune", other, plan=pruned.model_id)


def test_what_chooses_units_has_no_place_beside_a_plan(service, family):
    base, _, pruned = family
    for idle in ({"rate": 0.3}, {"part": "decoder"}, {"kinds": ["mid"]}, {"site_rates": {"mid": 0.3}}, {"round_to": 8}, {"score": "l2"},
                 {"scope": "global"}):  # fmt: skip
        method = {"method": "structured"} if {"score", "scope"} & set(idle) else {}
        with pytest.raises(CoreError, match=f"{next(iter(idle))} would have no effect"):
            service.prune_model(base, {"plan": pruned.model_id, **method, **idle})
    with pytest.raises(CoreError, match="plan would have no effect: it applies where method is"):
        service.prune_model(base, {"plan": pruned.model_id, "method": "global_magnitude"})
    with pytest.raises(CoreError, match="A schedule divides a rate, and a plan has none"):
        service.prune_in_rounds(base, {"plan": pruned.model_id}, RETRAIN, schedule="cubic", rounds=2)
    with pytest.raises(CoreError, match="prune.plan would have no effect"):
        service.measure_sensitivity(base, {"prune": {"method": "structured", "plan": pruned.model_id}, "image_size": 32})
    with pytest.raises(CoreError, match="cuts no residual stream"):
        service.prune_model(base, {"plan": pruned.model_id, "stream_norms": "exact"})


def test_the_same_units_masked_or_with_what_they_did_folded_in(bench, family):
    base, _, pruned = family
    dense, plain = load(bench.store, base).model, load(bench.store, pruned.model_id).model
    masked = load(bench.store, bench.run("prune", base, plan=pruned.model_id, apply="mask").model_id)
    assert masked.model.layout.digest() == Layout().digest() and masked.masks and plain.layout.digest() != Layout().digest()
    expected = zero(dense.state_dict(), dense.config, Layout(), plan_of(bench.store, load(bench.store, pruned.model_id).row).keep)
    assert all(torch.equal(value, expected[name]) for name, value in apply_masks(dense.state_dict(), masked.masks).items())
    fitted = {"method": "structured", "compensate": True, "calibration_size": 32, "plan": pruned.model_id}
    job = bench.run("prune", base, **fitted)
    folded = load(bench.store, job.model_id).model
    assert folded.layout == plain.layout
    assert not all(torch.equal(value, plain.state_dict()[name]) for name, value in folded.state_dict().items())
    with pytest.raises(CoreError, match="too few") as caught:
        bench.run("prune", base, **{**fitted, "calibration_images": 1})
    assert "at least" in str(caught.value.legal) or "or more" in str(caught.value.legal), caught.value.legal


def test_streams_are_kept_again_by_the_norms_that_were_asked_for(bench, service, family):
    base, trained, _ = family
    streams = bench.run("prune", base, method="structured", score="l2", compensate=False, kinds=["stream"], stream_norms="exact")
    with pytest.raises(CoreError, match="a masked one needs exact norms"):
        service.prune_model(trained, {"plan": streams.model_id, "apply": "mask"})
    plain, exact = (
        load(bench.store, bench.run("prune", trained, plan=streams.model_id, stream_norms=norms).model_id)
        for norms in ("plain", "exact")
    )
    assert plain.model.layout == exact.model.layout == load(bench.store, streams.model_id).model.layout
    assert plain.row.weights_digest != exact.row.weights_digest


def test_it_is_made_again_by_its_record(bench, family):
    _, trained, pruned = family
    made = bench.run("prune", trained, plan=pruned.model_id).model_id
    job = bench.run("reproduce", made)
    assert job.result["identical"] is True
    assert {step["model"] for step in job.result["steps"]} == {family[0], trained, pruned.model_id, made}


def test_prunings_without_a_plan_keep_the_identity_that_they_had(bench, family):
    assert "plan" not in PruneSpec().identity_spec() and PruneSpec().model_dump()["plan"] is None
    assert PruneSpec(plan="m_abcdef").identity_spec()["plan"] == "m_abcdef"
    assert "plan" not in st.get_model(bench.store, family[2].model_id).spec


def test_the_maker_may_be_deleted_afterwards_and_not_while_a_job_waits_for_its_plan(bench, service, family):
    base, trained, pruned = family
    maker = bench.run("prune", base, method="l2_structured", rate=0.3, part="decoder").model_id
    made = bench.run("prune", trained, plan=maker).model_id
    waiting = service.prune_model(trained, {"plan": maker, "apply": "mask"})
    with pytest.raises(StoreError, match="1 job still needs this model"):
        delete_model(bench.store, maker, keep_descendants=True)
    service.control(waiting.id, "cancel")
    after = bench.run("prune", made, method="l2_structured", rate=0.3).model_id
    named = [service.deletion(ref, alone=True).not_made_of_it for ref in (maker, trained)]
    first, second = ({st.get_model(bench.store, name).id for name in names} for names in named)
    assert first == {made, after} and not second & {made, after}
    st.delete_model(bench.store, made, keep_descendants=True)
    told, name = service.deletion(trained, alone=True), st.get_model(bench.store, after).name
    assert name in told.left_behind and name not in told.not_made_of_it, "a tombstone lies between"
    st.restore(bench.store, made)
    below = service.forest().below
    assert made in below[maker] and made in below[trained]
    drawn = draw(service.forest(), service.forest().models, chosen=made)
    place = {
        ref: dot["value"][:2]
        for number, refs in drawn.series.items()
        for ref, dot in zip(refs, drawn.options["series"][number]["data"], strict=True)
    }
    (line,) = [series["data"] for series in drawn.options["series"] if series.get("name") == "keeps the units of"]
    pairs = [(line[at + 1 : at + 3], line[at + 3 : at + 5]) for at in range(0, len(line), 5)]
    assert (list(place[maker]), list(place[made])) in pairs and "keeps the units of" in [
        one["name"] for one in drawn.options["legend"]["data"]
    ]
    delete_model(bench.store, maker, keep_descendants=True)
    assert service.held_part(made) == "encoder" and "m_" in service.spec_line(made)
    assert run_name(bench.store, jobs.get_job(bench.store, st.get_model(bench.store, made).job_id)).startswith(
        "dcae_l2structured_0.30"
    )
    with pytest.raises(StoreError, match="deleted"):
        service.prune_model(trained, {"plan": maker})
    assert bench.run("reproduce", made).result["identical"] is True
    restore(bench.store, maker)


def test_a_plan_travels_with_its_branch_and_a_script_makes_it_again(bench, service, family, tmp_path):
    _, trained, pruned = family
    made = bench.run("prune", trained, plan=pruned.model_id).model_id
    python, shell = (service.script(made, kind) for kind in ("python", "terminal"))
    order = [row.id for row in chain_of(bench.store, made)]
    assert order.index(pruned.model_id) < order.index(made)
    assert f"'plan': model_{order.index(pruned.model_id)}.id}}" in python and pruned.model_id in shell
    compile(python, "script", "exec")
    archive = export_branch(bench.store, made, tmp_path)
    with closing(open_store(tmp_path / "other")) as other:
        import_archive(other, archive.path)
        assert plan_of(other, st.get_model(other, pruned.model_id)).keep == service.plan_of(pruned.model_id).keep
        assert st.verify(other) == []


def test_a_job_that_is_yet_to_make_the_parent_cannot_hide_that_there_is_no_plan(bench, service, family):
    base, trained, _ = family
    first = service.prune_model(base, {"rate": 0.2})
    with pytest.raises(CoreError, match="has no plan"):
        service.prune_model({"job": first.id}, {"plan": trained})
    service.control(first.id, "cancel")


def test_a_model_whose_plan_is_not_on_record_has_none(bench, service, family):
    base, _, pruned = family
    with bench.store.write() as session:
        session.connection().exec_driver_sql(
            "UPDATE job SET result=json_remove(result, '$.plan_digest') WHERE id=?", (pruned.id,)
        )
    with pytest.raises(CoreError, match="has no plan"):
        service.prune_model(base, {"plan": pruned.model_id})
    imported = bench.add(seed=3, name="imported").id
    with pytest.raises(CoreError, match="has no plan"):
        service.plan_of(imported)
