"""Test runs on a page: whose figures Compare shows, the runs beside the pinned images, and whole folders through a model."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from core.compare import METRICS, Comparison
from core.model_manager import ModelManager
from core.quality import interval_text
from core.specs import DataRunSpec, InferSpec
from pages.ui.boot import guarded, job_bar, show_error
from pages.ui.figures import column_widths
from pages.ui.forms import spec_form
from store import ModelRow

PINNED = "pinned"


def on_images(manager: ModelManager, comparison: Comparison) -> Comparison:
    """The comparison on the images that are chosen: the pinned ones, or those of a test run. Nothing is drawn without a run."""
    refs = [model.id for model in comparison.models]
    runs = {run.id: run for run in manager.data_runs(refs)}
    if not runs:
        return comparison
    titles = {PINNED: "the pinned test images", **{number: run.title for number, run in runs.items()}}
    asked = st.query_params.get("on", PINNED)
    chosen = st.selectbox(
        "Quality is of", list(titles), index=list(titles).index(asked) if asked in titles else 0, format_func=titles.__getitem__,
        help="Quality figures, differences, front, ranking and pictures of this page are of these images alone.",
    )  # fmt: skip
    if chosen == PINNED:
        st.query_params.pop("on", None)
        return comparison
    st.query_params["on"] = chosen
    st.info("Quality figures on this page are of a test run, not of the pinned images. Reports are always of the pinned ones.")
    return manager.compare_on(comparison, chosen)


def runs_section(manager: ModelManager, models: list[ModelRow]) -> None:
    """Pinned figures and each run's, block by block; new runs, and folders."""
    st.subheader("Other images")
    refs = [model.id for model in models]
    table = _beside(manager, refs)
    if table:
        st.dataframe(pd.DataFrame(table), hide_index=True, height="content", column_config=column_widths(table, 260))
        st.caption(
            "Mean [95 % bootstrap interval]. Models compare within one block; a test run is never ranked with the pinned images."
        )
    else:
        st.caption("These models were tried on no other images yet.")
    with st.expander("Try these models on other images", icon=":material/dataset:", on_change="rerun", key="testrun-open") as box:
        if box.open:
            _try(manager, refs)
    title = "Reconstruct a whole folder"
    with st.expander(title, icon=":material/folder_open:", on_change="rerun", key="infer-open") as folder:
        if folder.open:
            _folder(manager, models)
    for job in manager.failed_runs(refs):
        if job.error:
            show_error(job.error)
        job_bar(manager, job, key="testrun-failed")
    under_way = manager.runs_under_way(refs)
    if under_way:
        _watch(manager, refs, len(under_way))


def _try(manager: ModelManager, refs: list[str]) -> None:
    """A form, drawn once it is asked for, as all its widgets take a tenth of a second."""
    found = spec_form(DataRunSpec, key="testrun", values=_start(manager, refs[-1]))
    if st.button("Run", type="primary", key="testrun-run"):
        with guarded():
            manager.run_on_data(refs, found)
            st.rerun()


def _start(manager: ModelManager, ref: str) -> dict[str, Any]:
    """The size that the model was judged at, and a folder to be named."""
    data = {**DataRunSpec().data.model_dump(), "kind": "folder", "location": ""}
    return {"image_size": manager.evaluation_for(ref)["image_size"], "data": data}


def _beside(manager: ModelManager, refs: list[str]) -> list[dict[str, str]]:
    """Rows of (images, model): the pinned block first, then each run's, the newest first. Empty without a run."""
    runs = manager.data_runs(refs)
    if not runs:
        return []
    pinned = manager.compare(refs)
    blocks = [("Pinned", pinned)] if pinned.protocol else []
    blocks += [(run.title, manager.compare_on(pinned, run.id)) for run in runs]
    intervals = [(title, on, manager.quality(on).intervals) for title, on in blocks]
    keys = [key for key in METRICS if any(key in own for _, _, found in intervals for own in found.values())]
    table = []
    for title, on, found in intervals:
        if title == "Pinned" and on.protocol:
            title = f"Pinned: {on.protocol['num_images']} of {on.protocol['source']}"
        for model in on.models:
            own = found.get(model.id)
            if own is None:
                continue
            cells = {METRICS[key].title: interval_text(METRICS[key], own[key]) if key in own else "–" for key in keys}
            table.append({"images": title, "model": model.name, **cells})
    return table


def _folder(manager: ModelManager, models: list[ModelRow]) -> None:
    """Batch inference: a form, and what was made."""
    by_id = {model.id: model for model in models}
    ref = st.selectbox(
        "Model", list(by_id), index=len(by_id) - 1, format_func=lambda one: by_id[one].name, key="infer-model", width=420
    )
    found = spec_form(InferSpec, key="infer", values=_start(manager, ref))
    if st.button("Reconstruct all", type="primary", key="infer-run"):
        with guarded():
            manager.infer(ref, found)
            st.rerun()
    for made in manager.inferences(ref):
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            broken = f", {made.num_broken} broken" if made.num_broken else ""
            means = ", ".join(f"{METRICS[key].title} {METRICS[key].text(made.means[key])}" for key in made.means)
            st.markdown(f"**{made.num_images} images{broken}** of {made.spec.data.location}  \n`{made.out}`  \n{means}")
            if made.there:
                st.download_button(
                    "CSV", data=made.table, file_name=f"results-{made.job_id[-8:]}.csv", mime="text/csv",
                    key=f"infer-{made.job_id}", on_click="ignore", icon=":material/download:",
                )  # fmt: skip
            else:
                st.caption("The files are not there any more.")


@st.fragment(run_every=1.0)
def _watch(_manager: ModelManager, refs: list[str], before: int) -> None:
    """Progress; redraws the page as runs end."""
    left = _manager.runs_under_way(refs)
    if len(left) != before:
        st.rerun(scope="app")
    for job in left[:3]:
        job_bar(_manager, job, key="testrun")
