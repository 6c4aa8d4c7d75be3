"""Single images on a page: the worst, those that got worse, near-duplicates; the next training leaves them out, or draws them more."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.errors import CoreError
from core.image_losses import LOSS_ORDERS, tagged
from core.inspection import ORDERS
from core.model_manager import ModelManager
from pages.ui.boot import guarded
from store import JobRow, ModelRow

TITLES = {
    "worst": "worst first",
    "regressed": "most lost against the parent first",
    "row": "in the order of the data",
    "least gained": "least gained since the first draw",
    "risen": "most risen above its running mean",
    "least drawn": "least often drawn first",
}
SHOWN = 200
COLUMNS = {
    "psnr_db": st.column_config.NumberColumn("PSNR (dB)", format="%.2f"),
    "change_db": st.column_config.NumberColumn("against the parent (dB)", format="%+.2f"),
    "nearly_equals": "nearly equals",
    "tags": "tags",
    "mean_loss": st.column_config.NumberColumn("running mean of the loss", format="%.4f"),
    "last_loss": st.column_config.NumberColumn("last loss", format="%.4f"),
    "first_loss": st.column_config.NumberColumn("first loss", format="%.4f"),
    "step": "last drawn at step",
    "count": "times drawn",
}


def left_out() -> tuple[str, ...]:
    """Rows that the next training leaves out: in the URL, so that a refresh loses nothing."""
    return tuple(part for part in str(st.query_params.get("without", "")).split(",") if part)


def weighted() -> tuple[tuple[str, float], ...]:
    """Rows that the next training draws more or less often, with how many times as often: in the URL too. Raises CoreError."""
    pairs = [part.rpartition(":") for part in str(st.query_params.get("weights", "")).split(",") if part]
    try:
        return tuple((row, float(weight)) for row, _, weight in pairs)
    except ValueError as error:
        raise CoreError(
            f"The page's address has weights that are no numbers: {error}.", given=st.query_params["weights"],
            legal="weights=ROW:TIMES,ROW:TIMES", next="Correct the address, or choose the images in the list.",
        ) from error  # fmt: skip


def image_list(manager: ModelManager, row: ModelRow, data: dict[str, Any], image_size: int, followed: str | None) -> None:
    """Images by an inspection of the model, or as they fared in a training; chosen ones are left out of the form's data, or weighted."""
    with st.expander("The images, one by one", on_change="rerun") as expander:
        if not expander.open:
            return
        with guarded():
            _draw(manager, row, data, image_size, followed)


def _training(manager: ModelManager, row: ModelRow, followed: str | None) -> JobRow | None:
    """The training on the page, else the one that made the model; None where its images are not known."""
    made = [job for job in manager.jobs(states=("done",), limit=200) if job.operation == "retrain" and job.model_id == row.id]
    job = manager.job(followed) if followed else next(iter(made), None)
    return job if job is not None and job.operation == "retrain" and manager.image_losses(job.id) is not None else None


def _draw(manager: ModelManager, row: ModelRow, data: dict[str, Any], image_size: int, followed: str | None) -> None:
    training = _training(manager, row, followed)
    sources = ["quality by this model", *([f"losses in {training.name}"] if training else [])]
    source = st.segmented_control("figures", sources, default=sources[0], required=True, key=f"images-source-{row.id}")
    if source == sources[0]:
        listed = _inspected(manager, row, data, image_size)
    else:
        listed = _fates(manager, training)  # type: ignore[arg-type]
    if listed is not None:
        found, spec, key = listed
        containing = st.text_input("row id or tag contains", key=f"images-filter-{row.id}", width=220)
        rows = tagged(found, manager.training_tags(spec), containing, SHOWN)
        event = st.dataframe(
            rows, hide_index=True, on_select="rerun", selection_mode="multi-row", height=260, key=f"images-{key}-{containing}",
            column_config=COLUMNS,
        )  # fmt: skip
        chosen = [rows[place]["row"] for place in event.selection.rows]  # type: ignore[attr-defined]
        for place, name in zip(st.columns(8), chosen[:8], strict=False):
            place.image(manager.training_frame(spec, name), caption=name, width="stretch", output_format="PNG")
        _actions(chosen)
        if chosen:
            _tagging(manager, spec, chosen)
    if left_out():
        st.caption(f"Left out of the training below: {', '.join(left_out())}. The new model's identity says so.")
    if weighted():
        told = ", ".join(f"{name} ({weight:g} times as often)" for name, weight in weighted())
        st.caption(f"Drawn more or less often in the training below: {told}. The new model's identity says so.")


def _inspected(
    manager: ModelManager, row: ModelRow, data: dict[str, Any], image_size: int
) -> tuple[list[dict[str, Any]], dict[str, Any], str] | None:
    """Rows of the newest inspection, the training values that hold its data, and a key; None without one."""
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
        return None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        orders = [order for order in ORDERS if order != "regressed" or table.parent_psnr_db is not None]
        order = st.selectbox("order", orders, format_func=TITLES.__getitem__, width=280)
        duplicates = st.checkbox("near-duplicates only")
    broken = f" {len(table.broken)} are broken: {', '.join(table.broken[:5])}." if table.broken else ""
    st.caption(f"{len(table.row_ids)} images were looked at; at most {SHOWN} are listed.{broken}")
    return table.rows(order, duplicates=duplicates), {"data": dict(table.data)}, f"{row.id}-{order}-{duplicates}"


def _fates(manager: ModelManager, job: JobRow) -> tuple[list[dict[str, Any]], dict[str, Any], str] | None:
    """Rows of a training's images, as they fared up to its last validation; its spec, and a key."""
    table = manager.image_losses(job.id)
    if table is None:
        return None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        order = st.selectbox("order", LOSS_ORDERS, format_func=TITLES.__getitem__, key=f"fates-order-{job.id}", width=280)
    st.caption(
        f"{len(table.row_ids)} images were drawn so far; at most {SHOWN} are listed. A loss is that of the step in which the image was "
        "drawn, as augmented there."
    )
    return table.rows(order), job.spec, f"{job.id}-{order}"


def _tagging(manager: ModelManager, spec: dict[str, Any], chosen: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        tag = st.text_input("tag", key="images-tag", width=180, help="A word on these images: it stays with them in every list.")
        for label, remove in ((f"Tag {len(chosen)}", False), (f"Untag {len(chosen)}", True)):
            if st.button(label, disabled=not tag, icon=":material/label_off:" if remove else ":material/label:"):
                manager.tag_training(spec, chosen, tag, remove=remove)
                st.rerun()


def _actions(chosen: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if chosen and st.button(f"Leave {len(chosen)} out of the next training", icon=":material/playlist_remove:"):
            kept = {name: weight for name, weight in weighted() if name not in chosen}
            _remember({*left_out(), *chosen}, kept)
        if chosen:
            times = st.number_input("times as often", 0.01, 100.0, 4.0, key="images-times", width=140)
            if st.button(f"Draw {len(chosen)} so often in the next training", icon=":material/repeat:"):
                kept = {name: weight for name, weight in weighted() if name not in chosen}
                _remember(set(left_out()) - set(chosen), {**kept, **dict.fromkeys(chosen, float(times))})
        if (left_out() or weighted()) and st.button("Take all back", icon=":material/undo:"):
            _remember(set(), {})


def _remember(without: set[str], weights: dict[str, float]) -> None:
    found = {
        "without": ",".join(sorted(without)),
        "weights": ",".join(f"{name}:{weight:g}" for name, weight in sorted(weights.items()) if weight != 1.0),
    }
    for name, value in found.items():
        if value:
            st.query_params[name] = value
        else:
            st.query_params.pop(name, None)
    st.rerun()
