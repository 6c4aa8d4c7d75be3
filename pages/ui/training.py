"""A retraining on a page: steering it while it runs, and its checkpoints with what can be made of them."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.compare import METRICS
from core.model_manager import ModelManager
from core.specs import RetrainSpec
from core.training import STANDING, cleaning_rule
from pages.ui.boot import guarded
from store import JobRow, ModelRow


def steering(manager: ModelManager, job: JobRow) -> None:
    """Checkpoint now; run some more steps, then pause; other settings for a training that stands still."""
    left = RetrainSpec.model_validate(job.spec).total_steps - manager.steps_done(job.id)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if job.state == "running" and st.button("Checkpoint now", icon=":material/save:"):
            with guarded():
                manager.control(job.id, "checkpoint")
        if job.state in ("queued", "running", "pausing", "paused", "failed", "cancelled") and left > 1:
            steps = st.number_input(
                "steps", 1, left - 1, min(100, left - 1), key=f"more-{job.id}", width=140,
                help="Each is answered within one step: the training pauses when they are done.",
            )  # fmt: skip
            if st.button("Run these, then pause", icon=":material/step_over:"):
                with guarded():
                    manager.run_more(job.id, int(steps))
                st.rerun(scope="fragment")
        if job.state in ("paused", "failed", "cancelled") and manager.checkpoints(job.id):
            # In the URL, so that the form below starts from this training's settings.
            if st.button("Go on with other settings", icon=":material/tune:"):
                st.query_params["onward"] = job.id
                st.rerun(scope="app")
    if job.pause_step is not None:
        st.caption(f"It will pause by itself at step {job.pause_step}.")


def show_hints(manager: ModelManager, job: JobRow) -> None:
    """What the curves say, with what to try."""
    for hint in manager.hints(job.id):
        st.warning(f"**{hint.flag.capitalize()}.** {hint.text}", icon=":material/insights:")


def layer_table(manager: ModelManager, job: JobRow) -> None:
    """Weights, gradients and activations of each part at the last validation."""
    found = manager.layer_figures(job.id)
    if not found:
        st.caption("Not measured: `layer stats` among the advanced settings does, at each validation.")
        return
    names = {"weight_rms": "weights (RMS)", "gradient_rms": "gradients (RMS)", "activation_rms": "activations (RMS)"}
    columns = {key: st.column_config.NumberColumn(title, format="%.3g") for key, title in names.items()}
    dead = st.column_config.ProgressColumn("dead channels", format="percent", min_value=0.0, max_value=1.0)
    st.dataframe(found, hide_index=True, column_config={**columns, "dead_ratio": dead}, key=f"layers-{job.id}")


def reset_form(manager: ModelManager, row: ModelRow) -> None:
    """Parts, layers or units of the chosen model that get new weights, as a new model. Drawn only where it is open."""
    with st.expander("Reset parts of this model", on_change="rerun") as expander:
        if expander.open:
            with guarded():
                _reset(manager, row)


def _reset(manager: ModelManager, row: ModelRow) -> None:
    parts = st.multiselect("parts or layers", manager.layer_names(row.id), key=f"reset-{row.id}")
    written = st.text_input(
        "units", key=f"reset-units-{row.id}", placeholder="all", width=300,
        help="Output units of the chosen layers, counted from 0: 3, 7, 12. Empty: all.",
    )  # fmt: skip
    sources = ["random", *(["parent", "baseline"] if row.parent_id else [])]
    to = st.segmented_control("to", sources, default="random", required=True, key=f"reset-to-{row.id}")
    if st.button("Reset", icon=":material/restart_alt:", disabled=not parts):
        units = [part.strip() for part in written.split(",") if part.strip()]
        manager.reset_layers(row.id, {"layers": parts, "units": units, "to": to})
        st.toast("The reset is queued: a new model, which you can train then.")


def image_preview(manager: ModelManager, values: dict[str, Any]) -> None:
    """What the training will see: frames of its own data, plain and in two draws. Drawn only where it is open."""
    with st.expander("What the images will look like", on_change="rerun") as expander:
        if not expander.open:
            return
        with guarded():
            found = manager.preview_images(values)
            if not found:
                st.caption("A hub data set is read when the training begins: there is nothing to show yet.")
            for preview in found:
                places = st.columns(5)
                places[0].image(preview.plain, caption="resized", width="stretch", output_format="PNG")
                for number, (target, seen) in enumerate(preview.draws):
                    places[1 + 2 * number].image(seen, caption=f"step {number}: seen", width="stretch", output_format="PNG")
                    places[2 + 2 * number].image(
                        target, caption=f"step {number}: to rebuild", width="stretch", output_format="PNG"
                    )


def checkpoint_list(manager: ModelManager, job: JobRow) -> None:
    """Step, figures, bytes, why kept; any of them becomes a model."""
    found = manager.checkpoints(job.id)
    rule = cleaning_rule(RetrainSpec.model_validate(job.spec))
    if not found:
        none = (
            "No checkpoint was written." if job.state == "done" else "No checkpoint yet: one is written at least once a minute."
        )
        st.caption(f"{none} {rule}")
        return
    keys = [key for key in METRICS if any(key in checkpoint.figures for checkpoint in found)]
    st.dataframe(
        [
            {
                "step": c.step,
                "written (UTC)": c.created[:19].replace("T", " "),
                "because": c.why,
                "kept because": c.kept,
                "MiB": c.bytes / 2**20,
                **{METRICS[key].title: c.figures.get(key) for key in keys},
            }
            for c in found
        ],
        hide_index=True,
        column_config={"MiB": st.column_config.NumberColumn(format="%.1f")},
        key=f"checkpoints-{job.id}",
    )
    st.caption(rule)
    best = found[0].best_step
    choices = [*(["best"] if best is not None else []), *(str(c.step) for c in found)]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        at = st.selectbox(
            "checkpoint", choices, format_func=lambda c: f"best so far (step {best})" if c == "best" else f"step {c}",
            key=f"at-{job.id}", width=220,
        )  # fmt: skip
        evaluated = st.checkbox("evaluate it too", True, key=f"evaluate-{job.id}")
        if st.button("Make a model of it", icon=":material/fork_right:"):
            with guarded():
                made = manager.branch(job.id, at)
                if evaluated:
                    manager.evaluate_model({"job": made.id}, manager.evaluation_for(str(made.parent_model_id)))
                waits = "" if job.state in STANDING else " It begins when this training ends, or is paused for a minute."
                st.toast(f"A model of the checkpoint is queued.{waits}")
    branches = [b for b in manager.jobs(states=("done",), limit=200) if b.operation == "branch" and b.spec["job"] == job.id]
    for branch in branches[:5]:
        if branch.model_id and job.parent_model_id:
            st.page_link(
                "pages/4_Compare.py", label=f"Compare the model of step {branch.result['step']}, and promote it there",
                query_params={"models": f"{job.parent_model_id},{branch.model_id}"},
            )  # fmt: skip
