"""What leaves the workbench: reports of what is compared, and exports of a model, with their history and downloads."""

from __future__ import annotations

import streamlit as st

from core.compare import Comparison
from core.exporting.tools import ELSEWHERE, FORMATS, TITLES, missing
from core.exports import Export
from core.model_manager import ModelManager
from core.reporting import FORMATS as REPORT_FORMATS
from core.reporting import MOST_MODELS
from core.specs import ExportSpec
from pages.ui.boot import guarded, job_bar
from pages.ui.forms import spec_form
from store import ModelRow
from store.jobs import ACTIVE

REPORT_TITLES = {"html": "HTML", "pdf": "PDF", "markdown": "Markdown", "csv": "CSV", "json": "JSON", "all": "All of them"}
MIME = {"html": "text/html", "pdf": "application/pdf", "csv": "text/csv", "json": "application/json", "zip": "application/zip"}


def report_section(manager: ModelManager, comparison: Comparison) -> None:
    """One click for each format: of the models shown with the costs shown, or of the last one's branch of the lineage."""
    st.subheader("Report")
    models = comparison.models
    last = models[-1]
    wide = st.segmented_control(
        "Of", ["these models", f"the branch of {last.name}"], default="these models", label_visibility="collapsed",
        help="The branch: its ancestors and descendants.",
    )  # fmt: skip
    of_branch = wide is not None and wide != "these models"
    refs = manager.lineage_branch(last.id) if of_branch else [model.id for model in models]
    title, run = (f"The branch of {last.name}", None) if of_branch else (None, comparison.run)
    if len(refs) > MOST_MODELS:
        st.caption(f"{len(refs)} models are too many for one report: {MOST_MODELS} at most. Choose some of them above.")
        return
    with st.container(horizontal=True):
        for form, ending in REPORT_FORMATS.items():
            st.download_button(
                REPORT_TITLES[form], data=lambda form=form: manager.report(refs, form, title=title, run=run),
                file_name=manager.report_name(refs, form), mime=MIME[ending], key=f"report-{form}", on_click="ignore",
                icon=":material/description:", type="primary" if form == "html" else "secondary",
            )  # fmt: skip
    st.caption(f"{len(refs)} models, with figures, statistics, pictures, specs and ids; made again from the store at any time.")


def export_section(manager: ModelManager, models: list[ModelRow]) -> None:
    """A form for one model, what is being exported, and what was."""
    st.subheader("Export")
    by_id = {model.id: model for model in models}
    ref = st.selectbox(
        "Model to export",
        list(by_id),
        index=len(by_id) - 1,
        format_func=lambda one: by_id[one].name,
        key="export-model",
        width=420,
    )
    with st.expander("New export", icon=":material/output:", on_change="rerun", key="export-open") as box:
        if box.open:
            _new_export(manager, ref)
    running = [job for job in manager.jobs(states=ACTIVE) if job.operation == "export" and job.parent_model_id == ref]
    if running:
        _watch(manager, ref, len(running))
    done = manager.exports(ref)
    if not done and not running:
        st.caption("Nothing was exported of this model yet.")
    for one in done:
        _one(manager, one)


def _new_export(manager: ModelManager, ref: str) -> None:
    """The form, and what is not installed here."""
    lacking = {form: packages for form in FORMATS if (packages := missing(form))}
    for form, packages in lacking.items():
        st.caption(f"{TITLES[form]}: not installed here (pip install {' '.join(packages)}).")
    start = manager.evaluation_for(ref)
    values = {"data": start["data"]} if "data" in start else {}
    found = spec_form(ExportSpec, key="export", values={**values, "image_size": start["image_size"]})
    for other in ELSEWHERE:
        st.caption(other.text)
    if st.button("Export", type="primary", key="export-run"):
        with guarded():
            manager.export_model(ref, found)
            st.rerun()


@st.fragment(run_every=1.0)
def _watch(_manager: ModelManager, ref: str, before: int) -> None:
    """Progress of a model's exports; redraws the page as they end."""
    left = [job for job in _manager.jobs(states=ACTIVE) if job.operation == "export" and job.parent_model_id == ref]
    if len(left) != before:
        st.rerun(scope="app")
    for job in left:
        job_bar(_manager, job, key="export")


def _one(manager: ModelManager, found: Export) -> None:
    """One export: how near to the model, how fast, its files and the lines that run it."""
    check, timed = found.check, found.benchmark
    with st.container(border=True):
        mark = ":material/check_circle:" if found.good else ":material/error:"
        st.markdown(f"{mark} **{found.title}** · {found.bytes / 1e6:.2f} MB · {found.created[:16].replace('T', ' ')} UTC")
        for reason in found.reasons:
            st.error(f"Not good: {reason}")
        speeds = [
            f"{part} {timed[f'export_{part}_ms']:.2f} ms in {timed['runtime']}, {timed[f'model_{part}_ms']:.2f} ms in torch"
            for part in ("encode", "decode")
            if f"export_{part}_ms" in timed
        ]
        st.caption(
            f"{check['psnr_to_model_db']:.1f} dB from the model on {check['num_images']:.0f} images (images at most "
            f"{check['max_image_error']:.2g} off, latents {check['max_latent_error_ratio']:.2g}); PSNR {check['psnr_db']:.2f} dB, the "
            f"model's {check['model_psnr_db']:.2f} dB.  \n{'; '.join(speeds)} (median of {timed['repeats']} interleaved repeats, "
            f"{timed['device_name']}, {timed['threads']} thread{'s' if timed['threads'] != 1 else ''}, {timed['image_size']} px, batch "
            f"{timed['batch_size']})."
        )
        with st.container(horizontal=True):
            st.download_button(
                "Download" if found.good else "Download all the same", data=lambda: manager.export_bundle(found.job_id),
                file_name=f"{found.spec.format}-{found.job_id[-8:]}.zip", mime=MIME["zip"], key=f"export-{found.job_id}",
                on_click="ignore", icon=":material/download:",
            )  # fmt: skip
            with st.popover("How to run it", icon=":material/code:"):
                st.code(found.snippet, language="python")
