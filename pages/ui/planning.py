"""A target instead of rates: the sensitivity heat map, the latency profile, and the pruning that the solver proposes."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from core.compare import METRICS
from core.model_manager import ModelManager
from core.outcomes import Outcome
from core.planning import Proposal, change_text
from core.solver.search import CODERS, CostName
from core.solver.sensitivity import METRICS as QUALITY
from core.solver.sensitivity import TOGETHER, SensitivityTable
from pages.ui.boot import guarded
from pages.ui.chain import start_chain
from pages.ui.figures import column_widths
from store import ModelRow
from store.forest import figures_stamp

TARGETS = {
    "decode_ms": ("Decode at most", "ms", 1.0),
    "encode_ms": ("Encode at most", "ms", 1.0),
    "parameters": ("Parameters at most", "M", 1e6),
    "decode_macs": ("Decode MACs at most", "G", 1e9),
    "encode_macs": ("Encode MACs at most", "G", 1e9),
    "weight_bytes": ("Weights at most", "MB", 1e6),
}
"""Cost -> label, unit, and what one of the unit is."""
UNUSED = ("plan", "rate", "threshold", "site_rates", "scope", "round_to", "apply", "skip_unfit")
"""Of a pruning's fields: those that a sensitivity measurement has no use for."""


def target_panel(manager: ModelManager, row: ModelRow, how: dict[str, Any], last: dict[str, Any]) -> None:
    """Measure, look, ask for a target, see the prediction, run. `how` are the form's values; `last` where its images are from."""
    job, table = manager.sensitivity_job(row.id), manager.sensitivity(row.id)
    st.caption(
        "Measured once for a model: what pruning each site alone costs in quality, and how long each block takes at each width. "
        "The solver then finds the rates that reach a target at the least loss."
    )
    first, second = st.columns(2)
    if first.button("Measure sensitivity" if table is None else "Measure sensitivity again", icon=":material/monitoring:"):
        with guarded():
            images = {key: last[key] for key in ("data", "image_size") if key in last}
            choice = {key: value for key, value in how.items() if key not in UNUSED}
            choice["method"] = "structured"
            start_chain([manager.measure_sensitivity(row.id, {"prune": choice, **images}).id], row.id)
            st.rerun()
    timed = manager.profile_job(row.id)
    if second.button("Profile latency" if timed is None else "Profile latency again", icon=":material/timer:"):
        with guarded():
            streams = "stream" in how.get("kinds", ())
            asked = {"image_size": last.get("image_size", 128), "streams": streams}
            start_chain([manager.profile_latency(row.id, asked).id], row.id)
            st.rerun()
    if job is None or table is None:
        return
    metric = table.metrics[-1]
    if len(table.metrics) > 1:
        metric = st.segmented_control(
            "Quality", table.metrics, default=metric, format_func=lambda name: METRICS[name].title, key="sensitivity-metric",
            label_visibility="collapsed",
        ) or metric  # fmt: skip
    st.plotly_chart(
        heat_map(table, metric, dark=st.context.theme.type == "dark"), key="sensitivity", config={"displayModeBar": False}
    )
    known = [name for name in TARGETS if name not in CODERS or timed is not None]
    place = st.columns(3)
    by_loss = (
        place[0].radio("Target", ["cost", "loss"], format_func={"cost": "a cost", "loss": "a loss of quality"}.__getitem__)
        == "loss"
    )
    cost = place[1].selectbox(
        "Make as small as possible" if by_loss else "Cost", known, format_func=lambda name: METRICS[name].title, key="solve-cost"
    )
    label, unit, scale = TARGETS[cost]
    measured = row.id, job.id, timed.id if timed else ""
    locked = st.multiselect(
        "Keep whole", lockable(table), key="solve-locked", placeholder="nothing is locked",
        help="Sites, stages or kinds that the solver must not touch.",
    )  # fmt: skip
    with guarded():
        if by_loss:
            value = place[2].number_input("Lose at most (dB, in one shot)", 0.05, 30.0, 2.0, 0.25)
            proposal = proposed(manager, *measured, cost, tuple(locked), loss_db=value)
        else:
            least, now = (figure / scale for figure in manager.reach(row.id, cost))
            value = place[2].number_input(
                f"{label} ({unit})", 0.0, None, round((least + now) / 2, 3), max(0.001, round(now / 20, 3)), key=f"solve-{cost}",
                help=f"Now {now:.3g}; with every measured rate at its highest {least:.3g}.",
            )  # fmt: skip
            proposal = proposed(manager, *measured, cost, tuple(locked), at_most=value * scale)
        show_proposal(proposal)
        first, second = st.columns(2)
        if second.button(
            "Prune so and measure", icon=":material/content_cut:", key="solve-measure",
            help="No retraining: what was predicted beside what comes out, below.",
        ):  # fmt: skip
            start_chain([job.id for job in manager.prune_as_proposed(row.id, proposal)], row.id, stay=True)
            st.rerun()
        if first.button("Prune so, retrain and compare", icon=":material/play_arrow:", type="primary", key="solve-run"):
            jobs = manager.compress(
                row.id, "medium", data=last.get("data"), image_size=last.get("image_size"), prune=proposal.spec
            )
            start_chain([job.id for job in jobs], row.id)
            st.rerun()
    show_outcomes(manager, measured)


@st.cache_data(max_entries=64, show_spinner=False)
def proposed(
    _manager: ModelManager, model: str, sensitivity: str, profile: str, cost: CostName, locked: tuple[str, ...], **target: float
) -> Proposal:
    """The solver's answer, kept while `sensitivity` and `profile` (their jobs' ids) are the newest: it takes half a second."""
    return _manager.propose(model, cost=cost, locked=locked, **target)


def lockable(table: SensitivityTable) -> list[str]:
    """What may be kept whole: kinds of site, whole or of one coder, then the measured sites or stages."""
    measured = sorted({(name.partition(".")[0], name.rpartition(".")[2]) for names in table.knobs.values() for name in names})
    kinds = sorted({kind for _coder, kind in measured})
    return [*kinds, *(f"{coder}.{kind}" for coder, kind in measured), *table.knobs]


def show_proposal(proposal: Proposal) -> None:
    """Predicted figures as tiles, the rates in an expander."""
    after = proposal.solution.after
    shown = [key for key in ("decode_ms", "parameters", "decode_macs", "psnr_db", "foreground_psnr_db") if key in after]
    for place, key in zip(st.columns(len(shown)), shown, strict=True):
        metric = METRICS[key]
        colour = "normal" if metric.higher_is_better else "inverse"
        place.metric(metric.title, metric.text(after[key]), proposal.change(key), delta_color=colour, border=True)  # type: ignore[arg-type]
    st.caption(f"Predicted; quality in one shot, before any retraining, on validation images. {proposal.latency_text()}")
    with st.expander("Rates"):
        st.dataframe(
            [{"site": name, "rate": rate} for name, rate in proposal.spec.site_rates.items()], hide_index=True, width="stretch"
        )


@st.cache_data(max_entries=16, show_spinner=False)
def outcomes_of(_manager: ModelManager, model: str, sensitivity: str, profile: str, stamp: tuple[Any, ...]) -> list[Outcome]:
    """What became of the prunings, kept until anything is made or measured."""
    return _manager.outcomes(model)


def show_outcomes(manager: ModelManager, measured: tuple[str, str, str]) -> None:
    """Predicted and achieved figures of what the solver's prunings made of a model; `measured` as `proposed` takes it."""
    found = outcomes_of(manager, *measured, figures_stamp(manager.store))
    if not found:
        return
    st.markdown("**Predicted → achieved**")
    quality = [key for key in QUALITY if any(key in one.predicted for one in found)]
    shown = [key for key in ("parameters", "decode_macs", "weight_bytes", "decode_ms", *quality) if key in found[0].predicted]
    table = []
    for one in found:
        cells = {"Weights" if key == "weight_bytes" else METRICS[key].title: " → ".join(one.changes(key)) for key in shown}
        after = {
            f"{METRICS[key].title}, retrained": change_text(key, *one.retrained[key]) if key in one.retrained else "–"
            for key in quality
            if any(key in other.retrained for other in found)
        }
        table.append({"": one.model.name, **cells, **after})
    st.dataframe(pd.DataFrame(table), hide_index=True, height="content", column_config=column_widths(table, first=280))
    st.caption(
        "Every pruning of this model by the measured way of choosing units, as a change from it; predicted by the measurements above. "
        "Parameters, MACs and bytes are counted in what was made; milliseconds are of one run that held both models; quality is predicted "
        "in one shot on validation images and achieved on test images."
    )


def heat_map(table: SensitivityTable, metric: str, *, dark: bool) -> go.Figure:
    """Decibels lost by knob (rows) and rate (columns); the stronger the colour, the more it hurts."""
    rates = sorted({cell.rate for cell in table.cells})
    found = {(cell.knob, cell.rate): table.whole[metric] - cell.figures[metric] for cell in (*table.cells, *table.together)}
    rows = [*table.knobs, *([TOGETHER] if table.together else [])]
    values = [[found.get((knob, rate)) for rate in rates] for knob in rows]
    figure = go.Figure(
        go.Heatmap(
            z=values, x=[f"{rate:g}" for rate in rates], y=rows, zmin=0,
            zmax=max(0.01, *(table.whole[metric] - cell.figures[metric] for cell in table.cells)),
            colorscale=[[0, "rgba(66, 133, 210, 0.06)"], [1, "rgb(66, 133, 210)"]],
            # Left to itself plotly takes pale cells for white ones.
            texttemplate="%{z:.2f}", textfont={"color": "#e6efe9" if dark else "#1d2a24"},
            hovertemplate="%{y} at %{x}: %{z:.2f} dB lost<extra></extra>",
            colorbar={"title": "dB"},
        )
    )  # fmt: skip
    and_all = ", and all together" if table.together else ""
    figure.update_layout(
        title=f"{METRICS[metric].title} lost by pruning one site alone{and_all} ({table.whole[metric]:.2f} dB as it is)",
        height=120 + 22 * len(rows),
        margin={"l": 10, "r": 10, "t": 40, "b": 30},
        xaxis_title="share of units removed",
        xaxis_type="category",
        yaxis_autorange="reversed",
        yaxis_showgrid=False,
    )
    return figure
