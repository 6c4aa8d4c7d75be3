"""The Weights & Biases mirror on Home: how far it is behind, its mode and project, and sending now."""

from __future__ import annotations

import streamlit as st

from core.mirror import MODES
from core.mirroring import MirrorView
from core.model_manager import ModelManager
from pages.ui.boot import guarded, show_error

_MODE_HELP = (
    "auto: sends where a W&B key is found, else nothing is written and runs wait. off: nothing. offline: W&B's own offline runs, "
    "for machines without a way out (`wandb sync` sends them elsewhere). online: sends, and says so where there is no key."
)


@st.fragment(run_every=5.0)
def mirror_line(_manager: ModelManager) -> None:
    """One line, with the last problem below it; what a key that has just come lets go is started from here."""
    with guarded():
        with st.container(horizontal=True, vertical_alignment="center"):
            line = st.empty()
            with st.popover("W&B mirror", icon=":material/cloud_sync:", type="tertiary"), guarded():
                _choice(_manager, _manager.mirror_view())
        _manager.ensure_mirror()
        view = _manager.mirror_view()
        line.caption(view.line)
        if view.problem is not None:
            show_error(view.problem)


def views_section(manager: ModelManager, refs: list[str]) -> None:
    """A comparison as a W&B Report and a workspace view, made on a click."""
    with st.expander(
        "W&B report and workspace view", icon=":material/cloud_upload:", on_change="rerun", key="wandb-views"
    ) as part:
        if not part.open:
            return
        st.caption("The models shown, side by side at W&B: written as files, and saved there where the mirror sends.")
        if st.button("Make them", key="wandb-views-make"):
            with guarded(), st.spinner("Loading wandb in a process of its own…"):
                st.session_state["wandb-views-made"] = manager.mirror_views(refs)
        made = st.session_state.get("wandb-views-made")
        if made is not None:
            places = [f"[{kind}]({url})" for kind, url in made.urls.items()] or [f"`{path}`" for path in made.files.values()]
            st.markdown("  \n".join([made.message, *places]))


def _choice(manager: ModelManager, view: MirrorView) -> None:
    """Mode and project, each kept as soon as it is changed."""
    st.caption("A copy of every finished run, for those who share them. The record here never waits for it.")
    # A key for each value: what is changed elsewhere (a terminal) is shown here, and not set back.
    mode = st.selectbox(
        "mode", MODES, MODES.index(view.mode), key=f"mirror-mode-{view.mode}", help=_MODE_HELP, disabled="mirror" in view.fixed
    )
    project = st.text_input(
        "project",
        view.project,
        key=f"mirror-project-{view.project}",
        help="Its name at W&B.",
        disabled="wandb_project" in view.fixed,
    )
    if view.fixed:
        st.caption("What is greyed out is set in the environment or in offshoot.toml.")
    if mode != view.mode:
        manager.set_mirror(mode=mode)
    if project != view.project:
        manager.set_mirror(project=project)
