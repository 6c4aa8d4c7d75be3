"""Compare: figures with their changes, quality against cost, the images that got worse first; *Make current* promotes."""

from pages.ui.boot import boot, describe, guarded

manager = boot("Compare")

import pandas as pd  # noqa: E402
import streamlit as st  # noqa: E402

from core.compare import MAIN_METRICS  # noqa: E402
from pages.ui.card import lazy  # noqa: E402
from pages.ui.choice import front_section, quality_section, ranking_section  # noqa: E402
from pages.ui.cost import chosen_run, cost_section  # noqa: E402
from pages.ui.data_runs import on_images, runs_section  # noqa: E402
from pages.ui.figures import change_text, column_widths, measured_text, protocol_text, validate_and_save, watch_validations  # noqa: E402
from pages.ui.inside import inside_section  # noqa: E402
from pages.ui.mirror import views_section  # noqa: E402
from pages.ui.model_table import choose_section, view_control  # noqa: E402
from pages.ui.picture_grid import images_section, upload_section  # noqa: E402
from pages.ui.shipping import export_section, report_section  # noqa: E402

st.title("Compare")
if view_control():
    with guarded():
        choose_section(manager)
    st.stop()
rows = {row.id: row for row in manager.list_models()}
asked = [ref for ref in st.query_params.get("models", "").split(",") if ref in rows]
current = manager.current()
assert current is not None
default = asked if len(asked) > 1 else manager.family(asked[0] if asked else current.id, asked)
picked = st.multiselect("Models", list(rows), default=default, format_func=lambda ref: describe(rows[ref]))
if not picked:
    st.info("Choose at least one model.")
    st.stop()
st.query_params["models"] = ",".join(picked)
with guarded():
    comparison = on_images(manager, manager.compare(picked, chosen_run(manager, picked)))
    waiting = [job for ref in picked for job in manager.validations(ref)]
    if waiting:
        watch_validations(manager, picked, len(waiting))
    with st.container(horizontal=True, vertical_alignment="center"):
        only = st.toggle("Only what differs")
        # Both changes of four models are wider than a screen.
        beside = st.segmented_control(
            "Change against", ["baseline", "parent", "both"], default="both" if len(picked) < 4 else "baseline", required=True,
            label_visibility="collapsed", help="Which change stands beside each value.", key=f"beside-{len(picked) < 4}",
        )  # fmt: skip
    table = []
    for key, metric in MAIN_METRICS.items():
        figures = [comparison.figures[m.id][key] for m in comparison.models]
        values = {f.value for f in figures}
        if values == {None} or (only and len(values) == 1):
            continue
        line = {"": metric.title}
        for model, figure in zip(comparison.models, figures, strict=True):
            changes = change_text(figure, beside)
            mark = {True: " ▲", False: " ▼", None: ""}[
                figure.better(figure.against_parent if beside == "parent" else figure.against_baseline)
            ]
            line[comparison.titles[model.id]] = metric.text(figure.value) + (f"   {changes}{mark}" if changes else "")
        table.append(line)

    def colour(text: object) -> str:
        shown = str(text)
        better, worse = ("#6fcf97", "#ff8a94") if st.context.theme.type == "dark" else ("#1d7043", "#b8293d")
        return f"color: {better}" if shown.endswith("▲") else f"color: {worse}" if shown.endswith("▼") else ""

    st.dataframe(pd.DataFrame(table).style.map(colour), hide_index=True, height="content", column_config=column_widths(table))
    st.caption(f"▲ better, ▼ worse than the {'parent' if beside == 'parent' else 'baseline'}.")
    if comparison.protocol:
        st.caption(protocol_text(comparison.protocol), help=f"Images' SHA-256: {comparison.protocol['images_sha256']}")
    if comparison.measurement:
        st.caption(measured_text(comparison.measurement))
    for note in comparison.notes:
        st.warning(note)
    with st.container(horizontal=True):
        if st.button("Benchmark them together", help="One interleaved run over all models shown."):
            with guarded():
                manager.benchmark_models(picked)
                st.toast("The benchmark is queued; figures appear here when it is done.")
                st.rerun()
        target = st.selectbox(
            "Which becomes current", picked, index=len(picked) - 1, format_func=lambda ref: rows[ref].name,
            label_visibility="collapsed", width=360,
        )  # fmt: skip
        already = target == current.id
        told = "It is the current model already." if already else "Home and the pages start from the current model."
        if st.button("Make current", type="primary", disabled=already, help=told):
            manager.promote(target)
            st.rerun()

    quality_section(manager, comparison)
    cost_section(manager, comparison)
    front_section(manager, comparison)
    ranking_section(manager, comparison)
    images_section(manager, comparison)
    upload_section(manager, comparison)
    inside_section(manager, comparison)
    runs_section(manager, comparison.models)
    report_section(manager, comparison)
    views_section(manager, picked)
    export_section(manager, comparison.models)
    st.subheader("One model")
    ref = st.selectbox("Model", picked, format_func=lambda ref: rows[ref].name, key="compare-model", width=420)
    validate_and_save(manager, rows[ref], key=f"compare-{ref}")
    lazy("Its settings", ":material/settings:", "compare-spec", lambda: st.json(rows[ref].spec))
