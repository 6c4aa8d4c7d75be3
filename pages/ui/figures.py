"""Figures on a page: value, change against parent and baseline, coloured by better or worse."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.compare import METRICS, UNCHANGED, Comparison, Figure, run_title
from core.model_manager import ModelManager
from store import ModelRow

MEMORY = ("peak_memory_bytes", "peak_resident_bytes")
"""Of the GPU where there is one, else of the process: one of them stays empty."""
HEADLINE = ("parameters", "sparsity", "decode_ms", "encode_ms", "psnr_db", "foreground_psnr_db", "ssim", "accuracy", "loss")


def change_text(figure: Figure, beside: str | None = "both") -> str | None:
    """Both changes in one line, or that against `baseline` or `parent` alone; None where there is nothing to compare with."""
    changes = {"baseline": figure.against_baseline, "parent": figure.against_parent}
    if beside in changes:
        change = changes[beside]
        return None if change is None else "unchanged" if abs(change) < UNCHANGED else figure.change_text(change)
    texts = {
        name: "unchanged" if abs(value) < UNCHANGED else figure.change_text(value)
        for name, value in changes.items()
        if value is not None
    }
    if len(texts) == 2 and len(set(texts.values())) == 1:
        return texts["baseline"] if texts["baseline"] == "unchanged" else f"{texts['baseline']} baseline and parent"
    return " · ".join(f"as its {name}" if text == "unchanged" else f"{text} {name}" for name, text in texts.items()) or None


def column_widths(table: list[dict[str, str]], first: int = 190) -> dict[str, Any]:
    """Columns as wide as their longest text, so that nothing is cut off: a wide table scrolls beside its first column."""
    found = {}
    for name in dict.fromkeys(key for row in table for key in row):
        longest = max(len(text) for text in (name, *(row.get(name, "") for row in table)))
        found[name] = st.column_config.Column(width=round(longest * 6.5) + 24)
    pinned = next(iter(found))
    return {**found, pinned: st.column_config.Column(width=first, pinned=True)}


def headline(manager: ModelManager, row: ModelRow, *, keys: tuple[str, ...] = HEADLINE, per_row: int = 5) -> Comparison:
    """Cards of a model's main figures."""
    comparison = manager.compare([row.id])
    figures = comparison.figures[row.id]
    shown = [key for key in keys if figures[key].value is not None]
    for start in range(0, len(shown), per_row):
        for place, key in zip(st.columns(per_row), shown[start : start + per_row], strict=False):
            figure = figures[key]
            better = figure.better(figure.against_baseline)
            colour = "off" if better is None else ("normal" if figure.metric.higher_is_better else "inverse")
            change = change_text(figure)
            place.metric(
                figure.metric.title, figure.metric.text(figure.value), change, delta_color=colour, border=True, height="stretch",
                delta_arrow="off" if change in ("unchanged", "as its baseline", "as its parent") else "auto",
            )  # type: ignore[arg-type]  # fmt: skip
    missing = [
        METRICS[key].title for key in keys if figures[key].value is None and METRICS[key].source != "facts" and key not in MEMORY
    ]
    waiting = manager.validations(row.id)
    if waiting:
        watch_validations(manager, [row.id], len(waiting))
    elif missing:
        st.caption(f"Not measured yet: {', '.join(missing)}. *Validate* measures quality and cost.")
    if comparison.measurement:
        st.caption(measured_text(comparison.measurement))
    if comparison.protocol and any(figures[key].value is not None for key in shown if METRICS[key].source == "scores"):
        st.caption(protocol_text(comparison.protocol))
    return comparison


def measured_text(m: dict[str, Any]) -> str:
    """How costs were measured."""
    return f"Latency: {run_title(m)}, median of {m.get('repeats', '?')} interleaved repeats."


def protocol_text(p: dict[str, Any]) -> str:
    """What quality was measured on."""
    kind = "test images" if "run" not in p else "images" if p["run"] == "all" else f"{p['run']} images"
    return f"Quality: {p['num_images']} {kind} of {p['source']}, {p['image_size']} px, {p['dtype']}."


@st.fragment(run_every=1.0)
def watch_validations(_manager: ModelManager, refs: list[str], before: int) -> None:
    """Says that figures are on their way, and redraws the page as they come."""
    left = [job for ref in refs for job in _manager.validations(ref)]
    if len(left) != before:
        st.rerun(scope="app")
    job = left[0]
    st.progress(
        min(1.0, job.fraction), text=f"Validating: {job.operation} {job.state}. Figures appear here when they are measured."
    )


def validate_and_save(manager: ModelManager, row: ModelRow, *, key: str) -> None:
    """The two buttons that stand beside every model shown."""
    with st.container(horizontal=True):
        busy = bool(manager.validations(row.id))
        told = "Being validated now." if busy else "Evaluates on the pinned test images and benchmarks beside the baseline."
        if st.button("Validate", key=f"{key}-validate", icon=":material/fact_check:", help=told, disabled=busy):
            manager.validate_model(row.id)
            st.toast("Validation is queued; figures appear here when it is done.")
            st.rerun()
        st.download_button(
            "Save to file", data=lambda: manager.weights(row.id), file_name=f"{row.name}.safetensors", key=f"{key}-save",
            icon=":material/download:", on_click="ignore",
        )  # fmt: skip


def pictures(manager: ModelManager, row: ModelRow, *, count: int = 8) -> None:
    """Originals above reconstructions."""
    found = manager.pictures(row.id)
    if not found:
        on_the_way = manager.validations(row.id)
        st.caption(
            "Reconstructions come with the validation." if on_the_way else "No reconstructions yet: *Validate* makes them."
        )
        return
    st.caption("Originals above, reconstructions below.")
    columns = st.columns(count)
    for place, (original, made) in zip(columns, found[:count], strict=False):
        place.image(original, width="stretch", output_format="PNG")
        place.image(made, width="stretch", output_format="PNG")
