"""Single images on a page: the worst, those that got worse, near-duplicates; and leaving them out of the next training."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.inspection import ORDERS
from core.model_manager import ModelManager
from pages.ui.boot import guarded
from store import ModelRow

TITLES = {"worst": "worst first", "regressed": "most lost against the parent first", "row": "in the order of the data"}
SHOWN = 200


def left_out() -> tuple[str, ...]:
    """Rows that the next training leaves out: in the URL, so that a refresh loses nothing."""
    return tuple(part for part in str(st.query_params.get("without", "")).split(",") if part)


def image_list(manager: ModelManager, row: ModelRow, data: dict[str, Any], image_size: int) -> None:
    """The newest inspection of a model; chosen images are left out of the form's data."""
    with st.expander("The images, one by one", on_change="rerun") as expander:
        if not expander.open:
            return
        with guarded():
            _draw(manager, row, data, image_size)


def _draw(manager: ModelManager, row: ModelRow, data: dict[str, Any], image_size: int) -> None:
    states = ("queued", "starting", "running", "paused")
    if any(job.operation == "inspect" and job.parent_model_id == row.id for job in manager.jobs(states=states)):
        st.caption("The images are being looked at: the list is here when the job in the sidebar has ended.")
    elif st.button("Look at every training image", icon=":material/image_search:"):
        manager.inspect_images(row.id, {"data": data, "image_size": image_size})
        st.toast("The inspection is queued.")
    table = manager.image_table(row.id)
    if table is None:
        st.caption(
            "How well this model does on each image of the form's data, against its parent; and which are nearly the same."
        )
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        orders = [order for order in ORDERS if order != "regressed" or table.parent_psnr_db is not None]
        order = st.selectbox("order", orders, format_func=TITLES.__getitem__, width=280)
        duplicates = st.checkbox("near-duplicates only")
    rows = table.rows(order, duplicates=duplicates, limit=SHOWN)
    broken = f" {len(table.broken)} are broken: {', '.join(table.broken[:5])}." if table.broken else ""
    st.caption(f"{len(table.row_ids)} images were looked at; at most {SHOWN} are listed.{broken}")
    event = st.dataframe(
        rows, hide_index=True, on_select="rerun", selection_mode="multi-row", height=260, key=f"images-{row.id}-{order}-{duplicates}",
        column_config={
            "psnr_db": st.column_config.NumberColumn("PSNR (dB)", format="%.2f"),
            "change_db": st.column_config.NumberColumn("against the parent (dB)", format="%+.2f"),
            "nearly_equals": "nearly equals",
        },
    )  # fmt: skip
    chosen = [rows[place]["row"] for place in event.selection.rows]  # type: ignore[attr-defined]
    for place, name in zip(st.columns(8), chosen[:8], strict=False):
        place.image(manager.frame(table.data, name), caption=name, width="stretch", output_format="PNG")
    with st.container(horizontal=True):
        if chosen and st.button(f"Leave {len(chosen)} out of the next training", icon=":material/playlist_remove:"):
            st.query_params["without"] = ",".join(sorted({*left_out(), *chosen}))
            st.rerun()
        if left_out() and st.button("Take all back", icon=":material/undo:"):
            st.query_params.pop("without")
            st.rerun()
    if left_out():
        st.caption(f"Left out of the training below: {', '.join(left_out())}. The new model's identity says so.")
