"""Prune: the parent on the left, the predicted candidate on the right."""

from pages.ui.boot import boot, chosen_model, guarded

manager = boot("Prune")

import streamlit as st  # noqa: E402

from core.specs import METHOD_TITLES, UNSTRUCTURED_METHODS, PruneSpec  # noqa: E402
from pages.ui.chain import finished, start_chain, watch_chain  # noqa: E402
from pages.ui.figures import headline, pictures, validate_and_save  # noqa: E402
from pages.ui.forms import spec_form  # noqa: E402

st.title("Prune")
chain = [ref for ref in st.query_params.get("chain", "").split(",") if ref]
if chain:
    made = finished(manager, chain)
    if made is not None:
        origin = st.query_params.get("from", made)
        st.switch_page("pages/4_Compare.py", query_params={"models": ",".join(manager.family(made, [origin]))})
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
    st.caption(METHOD_TITLES[values["method"]])
    with guarded():
        before, after = manager.cost(row.id), manager.predict_pruning(row.id, values)
        if after is None:
            st.caption("Sites are ranked together: the widths, and with them the cost, are known once the units are scored.")
        else:
            rows = (
                ("Parameters", before.parameters, after.parameters, 1e6, "M"),
                ("Decode MACs", before.decode_macs, after.decode_macs, 1e9, "G"),
                (
                    "Weights (dense)" if values["method"] in UNSTRUCTURED_METHODS else "Weights",
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
        if values["method"] in UNSTRUCTURED_METHODS:
            st.caption(
                "Single weights become zero: the stored file shrinks with them, the speed on dense kernels stays as it is."
            )
        then = st.toggle(
            "Then retrain and compare", value=True, help="Adds the medium preset's retraining, an evaluation and a benchmark."
        )
        if st.button("Run", type="primary", icon=":material/play_arrow:"):
            if then:
                jobs = manager.compress(row.id, "medium", data=last.get("data"), image_size=last["image_size"], prune=values)
            else:
                jobs = [manager.prune_model(row.id, values)]
                jobs.append(manager.evaluate_model({"job": jobs[0].id}, last))
            start_chain([job.id for job in jobs], row.id)
            st.rerun()
