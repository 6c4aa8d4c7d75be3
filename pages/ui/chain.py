"""A chain of jobs (prune, retrain, evaluate, benchmark) while it runs; its ids stand in the URL, so a refresh loses nothing."""

from __future__ import annotations

from math import ceil, floor

import streamlit as st

from core.model_manager import ModelManager
from pages.ui.boot import job_bar, show_error

PALETTE = ("#4b9c68", "#e08a2e", "#5b8def", "#d9607a", "#9a7bd0")
"""Of curves and points: each reads on the light and on the dark ground."""
MARKS = {
    "done": "check_circle",
    "failed": "error",
    "cancelled": "cancel",
    "running": "sync",
    "starting": "sync",
    "paused": "pause_circle",
}


def start_chain(ids: list[str], parent: str, *, stay: bool = False) -> None:
    """Puts a chain in the URL; with `stay` the page shows what it made itself."""
    st.query_params["chain"] = ",".join(ids)
    st.query_params["from"] = parent
    if stay:
        st.query_params["stay"] = "1"


def end_chain() -> None:
    """Takes it out again, all at once."""
    rest = {name: value for name, value in st.query_params.to_dict().items() if name not in ("chain", "from", "stay")}
    st.query_params.from_dict(rest)


@st.fragment(run_every=0.7)
def watch_chain(_manager: ModelManager, ids: list[str]) -> None:
    """Each step with its state; when all are done, the page reruns and opens Compare. A chain that stopped can be put away."""
    jobs = [_manager.job(ref) for ref in ids]
    st.markdown("  →  ".join(f":material/{MARKS.get(job.state, 'schedule')}: {job.operation}" for job in jobs))
    active = next((job for job in jobs if job.state not in ("done", "queued", "blocked")), None)
    if active is not None:
        job_bar(_manager, active, key="chain")
        if active.state == "failed" and active.error:
            show_error(active.error)
        if active.operation == "retrain" and active.state in ("running", "pausing", "paused"):
            steps, values = _manager.series(active.id, "loss", max_points=300)
            if len(steps) > 1:
                st.echarts_chart(line_chart({"loss": (steps, values)}, "step"), height=220, key=f"chain-loss-{active.id}")
        with st.expander("Log"):
            show_log(_manager, active.id)
        if active.state in ("failed", "cancelled"):
            st.caption("*Resume* goes on from here; *Put away* cancels the steps that wait. Models made so far stay.")
            if st.button("Put away", icon=":material/close:"):
                for job in jobs:
                    if job.state in ("queued", "blocked"):
                        _manager.control(job.id, "cancel")
                end_chain()
                st.rerun(scope="app")
    if all(job.state == "done" for job in jobs):
        st.rerun(scope="app")


def show_log(manager: ModelManager, ref: str, last: int = 60) -> None:
    """The end of a job's log."""
    lines = manager.log(ref, last=last)
    st.code("\n".join(f"{line['time'][11:19]} {line['level']}: {line['message']}" for line in lines), language=None)


def finished(manager: ModelManager, ids: list[str]) -> str | None:
    """The model that a finished chain made, or None."""
    jobs = [manager.job(ref) for ref in ids]
    if not all(job.state == "done" for job in jobs):
        return None
    return next((job.model_id for job in reversed(jobs) if job.model_id), None)


def line_chart(
    curves: dict[str, tuple[list[int], list[float]]], x_name: str, *, log: bool = False, marks: dict[str, float] | None = None
) -> dict:
    """ECharts options for curves of (x, y); `marks` are horizontal reference lines."""
    shown = [value for _, values in curves.values() for value in values] + list((marks or {}).values())
    # ECharts fits its axis to the curves alone: marks would lie outside.
    edges = {"min": floor(min(shown)), "max": ceil(max(shown))} if marks and shown else {}
    series = [
        {
            "type": "line",
            "name": name,
            "showSymbol": len(x) == 1,
            "animation": False,
            "data": [list(p) for p in zip(x, y, strict=True)],
        }
        for name, (x, y) in curves.items()
    ]
    if series and marks:
        series[0]["markLine"] = {
            "symbol": "none",
            "data": [
                {"yAxis": value, "name": name, "label": {"formatter": name, "position": "insideEndTop"}}
                for name, value in marks.items()
            ],
        }
    return {
        "color": PALETTE,
        "legend": {"top": 0},
        "tooltip": {"trigger": "axis"},
        "grid": {"left": 60, "right": 20, "top": 30, "bottom": 40},
        "xAxis": {"type": "value", "name": x_name, "nameLocation": "middle", "nameGap": 24},
        "yAxis": {"type": "log" if log else "value", "scale": True, **edges},
        "series": series,
    }
