"""Lineage: the tree of models; a click shows how one came about, and where to go from it."""

from pages.ui.boot import boot, describe, guarded

manager = boot("Lineage")

import streamlit as st  # noqa: E402

from pages.ui.figures import headline, validate_and_save  # noqa: E402
from pages.ui.tree import clicked_model, tree_chart, tree_height  # noqa: E402

FOCUS = 300

st.title("Lineage")
words = st.text_input("Search", placeholder="Search by name, id, kind, note or tag", label_visibility="collapsed")
rows = manager.list_models(text=words or None)
everything = {row.id: row for row in manager.list_models()}
if not rows:
    st.info("No model fits that search.")
    st.stop()
current = manager.current()
assert current is not None
chosen = st.query_params.get("model", current.id)
if chosen not in everything:
    chosen = current.id
shown = rows[:FOCUS]
event = st.echarts_chart(tree_chart(shown, chosen=chosen), height=tree_height(shown), key="lineage-tree", on_select="rerun")
st.caption("A click on a model shows it below; size is its number of parameters.")
if len(rows) > FOCUS:
    st.caption(f"The newest {FOCUS} of {len(rows)} models are drawn; the table has all.")
clicked = clicked_model(event, shown)
if clicked and clicked != st.session_state.get("lineage-clicked"):
    st.session_state["lineage-clicked"] = clicked
    st.query_params["model"] = clicked
    st.rerun()
with st.expander("All models as a table", expanded=len(rows) > FOCUS):
    table = [
        {"name": r.name, "id": r.id, "kind": r.kind, "parameters (M)": r.facts["parameters"] / 1e6,
         "sparsity": f"{r.facts['sparsity']:.1%}",
         "created (UTC)": r.created[:19].replace("T", " "), "tags": ", ".join(r.tags)}
        for r in rows
    ]  # fmt: skip
    picked = st.dataframe(table, hide_index=True, on_select="rerun", selection_mode="single-row", key="lineage-table")
    selected = picked["selection"]["rows"]  # type: ignore[index]
    if selected and rows[selected[0]].id != chosen and st.button("Show the selected model"):
        st.query_params["model"] = rows[selected[0]].id
        st.rerun()
with guarded():
    row = manager.get_model(chosen)
    st.subheader(row.name)
    about = [row.id, row.kind, f"{row.created[:19].replace('T', ' ')} UTC", *(f"★{alias}" for alias in row.aliases)]
    st.caption(" · ".join(about))
    headline(manager, row)
    validate_and_save(manager, row, key="lineage")
    go_on = st.columns(4, vertical_alignment="center")
    go_on[0].page_link("pages/2_Prune.py", label="Prune from here", icon=":material/content_cut:", query_params={"model": row.id})
    go_on[1].page_link(
        "pages/3_Retrain.py", label="Retrain from here", icon=":material/model_training:", query_params={"model": row.id}
    )
    go_on[2].page_link("pages/4_Compare.py", label="Compare", icon=":material/compare:", query_params={"models": row.id})
    already = "current" in row.aliases
    if go_on[3].button("Make current", disabled=already, help="It is the current model already." if already else None):
        manager.promote(row.id)
        st.rerun()
    left, right = st.columns(2)
    with left:
        st.markdown("**How it came about**")
        for step in manager.ancestry(row.id):
            st.markdown(f"- {describe(step)} · `{step.id}`")
            st.caption(manager.spec_line(step.id))
    with right:
        note = st.text_area("Note", row.note, key=f"note-{row.id}")
        if note != row.note:
            manager.annotate(row.id, note=note)
            st.toast("Note saved.")
        tag = st.text_input("Add a tag", key=f"tag-{row.id}-{len(row.tags)}")
        if tag:
            manager.annotate(row.id, tag=tag)
            st.rerun()
        if row.tags:
            st.caption("Tags: " + ", ".join(row.tags))
        with st.popover("Delete", icon=":material/delete:"):
            going = manager.deletion(row.id)
            st.markdown(f"**{len(going.names)} models would go**: " + ", ".join(going.names))
            st.caption(f"{going.bytes / 1e6:.1f} MB. Their ids stay on record, so descendants of the past still verify.")
            if st.button("Delete for good", type="primary"):
                manager.delete(row.id)
                st.query_params.pop("model", None)
                st.rerun()
