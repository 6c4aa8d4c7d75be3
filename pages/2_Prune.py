"""Prune: the parent on the left, the predicted candidate on the right."""

from pages.ui.boot import boot, chosen_model, guarded

manager = boot("Prune")

import streamlit as st  # noqa: E402

from core.checks import changed, checked  # noqa: E402
from core.presets import preset_on  # noqa: E402
from core.schedules import rounds_of, with_steps  # noqa: E402
from core.specs import METHOD_TITLES, STRUCTURED_METHODS, PruneSpec, RetrainSpec, ScheduleSpec  # noqa: E402
from pages.ui.chain import end_chain, finished, start_chain, watch_chain  # noqa: E402
from pages.ui.figures import headline, pictures, validate_and_save  # noqa: E402
from pages.ui.forms import spec_form  # noqa: E402
from pages.ui.planning import target_panel  # noqa: E402


def rounds_form(prune: dict, retrain: RetrainSpec) -> tuple[dict, RetrainSpec]:
    """Schedule, number of rounds and steps of retraining in total, with what each round will ask for.

    A pruning that has no rate to divide (2:4, a threshold, a plan) is one-shot.
    """
    plan = {"schedule": "one-shot"}
    if prune["method"] != "two_four" and prune["rate"] is not None and not prune["plan"]:
        plan = spec_form(ScheduleSpec, key="rounds", values=plan, per_row=2)
    steps = int(
        st.number_input(
            "steps of retraining in total", 1, 1_000_000, retrain.total_steps, step=25, key="rounds-steps",
            help=f"Of batch {retrain.batch_size}, with the medium preset's other settings; rounds share them.",
        )
    )  # fmt: skip
    trained = retrain if steps == retrain.total_steps else with_steps(retrain, steps)
    how = checked(ScheduleSpec, plan)
    rounds = rounds_of(checked(PruneSpec, prune), trained, how)
    if len(rounds) > 1:
        st.caption(
            "  \n".join(
                f"Round {place}: {'mask' if each.prune.apply == 'mask' else 'prune'} at {each.prune.rate:.3g}, "
                f"then {each.retrain.total_steps} steps"
                for place, each in enumerate(rounds, start=1)
            )
        )
    return how.model_dump(), trained


st.title("Prune")
chain = [ref for ref in st.query_params.get("chain", "").split(",") if ref]
if chain:
    made = finished(manager, chain)
    if made is not None and "stay" not in st.query_params:
        origin = st.query_params.get("from", made)
        st.switch_page("pages/4_Compare.py", query_params={"models": ",".join(manager.family(made, [origin]))})
    if all(manager.job(ref).state == "done" for ref in chain):  # what was measured stands below
        end_chain()
        st.rerun()
    watch_chain(manager, chain)
    st.divider()
left, right = st.columns(2, gap="large")
with left:
    row = chosen_model(manager, "Parent")
    headline(manager, row, keys=("parameters", "sparsity", "decode_ms", "psnr_db", "foreground_psnr_db"), per_row=2)
    validate_and_save(manager, row, key="prune")
    pictures(manager, row, count=4)
    with st.expander("Configuration"):
        st.json(row.config, expanded=1)
with right:
    st.markdown("**Candidate**")
    last = manager.evaluation_for(row.id)
    start = {"calibration_size": last["image_size"], **({"calibration_data": last["data"]} if "data" in last else {})}
    values = spec_form(PruneSpec, key="prune", values=start, per_row=2)
    if values.get("threshold"):
        values["rate"] = None
    st.caption("The units that another pruning kept" if values["plan"] else METHOD_TITLES[values["method"]])
    with guarded():
        before, after = manager.cost(row.id), manager.predict_pruning(row.id, values)
        if after is None:
            st.caption("Sites are ranked together: the widths, and with them the cost, are known once the units are scored.")
        else:
            rows = (
                ("Parameters", before.parameters, after.parameters, 1e6, "M"),
                ("Decode MACs", before.decode_macs, after.decode_macs, 1e9, "G"),
                (
                    "Weights" if values["method"] in STRUCTURED_METHODS else "Weights (dense)",
                    before.weight_bytes,
                    after.weight_bytes,
                    1e6,
                    "MB",
                ),
            )
            for place, (title, a, b, scale, unit) in zip(st.columns(3), rows, strict=True):
                same = a == b
                place.metric(
                    title, f"{b / scale:.2f} {unit}", "unchanged" if same else f"{b / a - 1:+.1%}", border=True,
                    delta_color="off" if same else "inverse", delta_arrow="off" if same else "auto",
                )  # fmt: skip
        if values["method"] not in STRUCTURED_METHODS:
            st.caption(
                "Single weights become zero: the stored file shrinks with them, the speed on dense kernels stays as it is."
            )
        then = st.toggle(
            "Then retrain and compare",
            value=True,
            help="Adds a retraining (in rounds, if you like), an evaluation and a benchmark.",
        )
        if then:
            preset = preset_on("medium", last.get("data"), last["image_size"])
            plan, retrain = rounds_form(
                values, changed(preset.retrain, frozen_part=manager.held_part(row.id, manager.pruned_part(values)))
            )
        if st.button("Run", type="primary", icon=":material/play_arrow:"):
            if then:
                judged = {"evaluate": preset.evaluate, "benchmark": preset.benchmark}
                jobs = manager.prune_in_rounds(row.id, values, retrain, **plan, **judged)
            else:
                jobs = [manager.prune_model(row.id, values)]
                jobs.append(manager.evaluate_model({"job": jobs[0].id}, last))
            start_chain([job.id for job in jobs], row.id)
            st.rerun()
with st.expander("A target instead of rates", icon=":material/target:", expanded=manager.sensitivity_job(row.id) is not None):
    target_panel(manager, row, values, last)
