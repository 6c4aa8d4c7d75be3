"""The first line of every page: page settings, the service, the sidebar, and the one place where errors become a box.

Every page file stands on its own: a deep link on a fresh server runs it without `Home.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st

from core.bug_report import bug_report
from core.errors import as_error, legal_text
from core.model_manager import ModelManager
from core.terminal.demo import prepare
from store import JobRow, ModelRow
from store.jobs import ACTIVE

CONTROL_ICONS = {"pause": ":material/pause:", "resume": ":material/play_arrow:", "cancel": ":material/stop:"}


@st.cache_resource(
    show_spinner="Opening the store. The first time, sample images are drawn and the demo model is imported: about a minute…"
)
def _manager() -> ModelManager:
    made = ModelManager()
    prepare(made)
    made.warm()
    settle()
    return made


def settle() -> None:
    """Leaves what is loaded now out of garbage collection (it still goes when nothing refers to it).

    Streamlit collects after each fragment run: 123 ms a refresh, 10 ms once what is loaded is frozen. What an earlier call froze is
    looked through once more, so that ended sessions do not pile up.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def boot(title: str) -> ModelManager:
    """Sets the page up, draws the sidebar and returns the service."""
    st.set_page_config(page_title=f"{title} · Offshoot", page_icon="🌱", layout="wide", initial_sidebar_state="expanded")
    # Streamlit leaves six rem above the first line.
    st.html(
        "<style>.stMainBlockContainer{padding-top:2.5rem} [data-testid='stMetricValue']{font-size:1.6rem} "
        "[data-testid='stMetricDelta'] *{white-space:normal !important; overflow:visible} "
        # In a narrow window cards wrap to the next line; their text would be cut off.
        ".stColumn:has([data-testid='stMetric']):not(:has(.stColumn)){min-width:9.5rem}</style>"
    )
    with guarded():
        manager = _manager()
        _sidebar(manager)
        return manager
    st.stop()


@contextmanager
def guarded() -> Iterator[None]:
    """A user's mistake becomes one box: what was wrong, what is legal, what to do. Bugs pass through to Streamlit's own box."""
    try:
        yield
    except Exception as error:  # the page's boundary; rethrown unless it is one of our errors
        fields = as_error(error)
        if fields is None:
            raise
        show_error(fields)


def show_error(fields: dict[str, Any]) -> None:
    """The error box."""
    lines = [f"**{fields['message']}**"]
    if legal := legal_text(fields.get("legal")):
        lines.append(f"Legal: {legal}")
    if fields.get("next"):
        lines.append(str(fields["next"]))
    st.error("  \n".join(lines), icon=":material/error:")


def chosen_model(manager: ModelManager, label: str = "Model") -> ModelRow:
    """The model of this page: from the URL (`?model=`), else the current one; a select box changes the URL."""
    rows = manager.list_models()
    by_id = {row.id: row for row in rows}
    wanted = st.query_params.get("model")
    current = manager.current()
    assert current is not None
    if wanted is not None and wanted not in by_id:
        with guarded():
            wanted = manager.get_model(wanted).id
    start = wanted if wanted in by_id else current.id
    picked = st.selectbox(
        label,
        list(by_id),
        index=list(by_id).index(start),
        format_func=lambda ref: describe(by_id[ref]),
        help="Every model of the store, newest first. Type to search.",
    )
    if picked != st.query_params.get("model"):
        st.query_params["model"] = picked
    return by_id[picked]


def describe(row: ModelRow) -> str:
    """A model in one line."""
    marks = " ".join(f"★{alias}" for alias in row.aliases)
    return f"{row.name} · {row.facts['parameters'] / 1e6:.2f} M {marks}".strip()


def _sidebar(manager: ModelManager) -> None:
    with st.sidebar:
        row = manager.current()
        st.markdown("### :material/eco: Offshoot")
        if row is not None:
            st.caption("Current model")
            st.page_link("pages/1_Baseline.py", label=row.name, query_params={"model": row.id})
        _job_chip()
        _monitor()
        _report()


@st.fragment(run_every=1.0)
def _job_chip() -> None:
    """What runs now, with time left, pause and cancel."""
    manager = _manager()
    active = manager.jobs(states=ACTIVE, limit=20)
    running = [job for job in active if job.state not in ("queued", "blocked")]
    if not active:
        st.caption("No job is running.")
        return
    shown = running[:2] or active[-1:]
    for job in shown:
        job_bar(manager, job, key="chip")
    waiting = len(active) - len(shown)
    if waiting > 0:
        st.caption(f"{waiting} more waiting")


def job_bar(manager: ModelManager, job: JobRow, *, key: str) -> None:
    """One job: name, state, progress, time left and its controls. Why it failed is for whoever shows it to say."""
    message = "" if job.state == "failed" else job.message
    left = "" if job.eta_s is None else f" · {clock(job.eta_s)} left"
    st.progress(min(1.0, job.fraction), text=f"**{job.name}** · {job.state}{left}  \n{message}")
    legal = {
        "running": ("pause", "cancel"),
        "starting": ("cancel",),
        "queued": ("cancel",),
        "blocked": ("cancel",),
        "paused": ("resume", "cancel"),
        "failed": ("resume",),
        "cancelled": ("resume",),
    }.get(job.state, ())
    if not legal:
        return
    with st.container(horizontal=True):
        for verb in legal:
            if st.button(verb.capitalize(), icon=CONTROL_ICONS[verb], key=f"{key}-{verb}-{job.id}"):
                with guarded():
                    manager.control(job.id, verb)
                st.rerun(scope="fragment")


@st.fragment(run_every=5.0)
def _monitor() -> None:
    """How busy the devices are."""
    for device in _manager().devices():
        used, total = device.used_bytes / 2**30, device.total_bytes / 2**30
        st.caption(f"{device.title}  \n{device.busy_ratio:.0%} busy · {used:.1f} of {total:.0f} GiB")


@st.fragment
def _report() -> None:
    """What to send when something is wrong, and where."""
    manager = _manager()
    with st.popover("Report a bug", icon=":material/bug_report:", type="tertiary", on_change="rerun") as popover:
        if popover.open:
            url = manager.settings.report_url
            where = (
                f"Send it [here]({url})"
                if url
                else "Send it to whoever looks after this workbench (`OFFSHOOT_REPORT_URL` puts a link here)"
            )
            st.caption(f"{where}, with what you did, what you expected and what you saw.")
            st.code(bug_report(manager.store), language=None, wrap_lines=True)


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
