"""Retrain: every setting, what the learning rate will really do, and the run as it goes."""

from pages.ui.boot import boot, chosen_model, guarded, job_bar, show_error

manager = boot("Retrain")

import streamlit as st  # noqa: E402

from core.compare import METRICS  # noqa: E402
from core.retrain_presets import RETRAIN_PRESETS  # noqa: E402
from core.specs import RetrainSpec  # noqa: E402
from dcaecore.freezing import part_names  # noqa: E402
from dcaecore.schedules import learning_rate, schedule_warning  # noqa: E402
from pages.ui.chain import line_chart, show_log  # noqa: E402
from pages.ui.figures import headline, validate_and_save  # noqa: E402
from pages.ui.forms import spec_form  # noqa: E402
from pages.ui.images import image_list, left_out, weighted  # noqa: E402
from pages.ui.mixing import share_chart, slice_table  # noqa: E402
from pages.ui.training import checkpoint_list, image_preview, layer_table, reset_form, show_hints, steering  # noqa: E402


@st.fragment(run_every=1.0)
def watch(ref: str) -> None:
    """A retraining: progress, controls, curves against the baseline, reconstructions as they improve, log."""
    job = manager.job(ref)
    job_bar(manager, job, key="retrain")
    steering(manager, job)
    if job.error and job.state == "failed":
        show_error(job.error)
    loss, quality = st.columns(2)
    steps, values = manager.series(ref, "loss", max_points=400)
    if len(steps) > 1:
        with loss:
            st.echarts_chart(
                line_chart({"loss": (steps, values)}, "step", log=0 < 10 * min(values) < max(values)),
                height=260,
                key="retrain-loss",
            )
    curves = {METRICS[k].title: manager.series(ref, f"val_{k}", max_points=400) for k in ("psnr_db", "foreground_psnr_db")}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if curves:
        marks = manager.baseline_marks(job.parent_model_id) if job.parent_model_id else {}
        marks = {name: value for name, value in marks.items() if name.removeprefix("baseline ") in curves}
        with quality:
            st.echarts_chart(line_chart(curves, "step", marks=marks), height=260, key="retrain-quality")
    shown = manager.job_pictures(ref)
    if shown:
        st.caption(f"Reconstructions at step {shown[0][2]}: originals above.")
        for place, (original, made, _) in zip(st.columns(8), shown[:8], strict=False):
            place.image(original, width="stretch", output_format="PNG")
            place.image(made, width="stretch", output_format="PNG")
    show_hints(manager, job)
    with st.expander("Checkpoints"):
        checkpoint_list(manager, job)
    with st.expander("Layers"):
        layer_table(manager, job)
    with st.expander("Validation by slice"):
        slice_table(manager, job)
    with st.expander("Log"):
        show_log(manager, ref)
    if job.state == "done" and job.model_id:
        ended = f" It ended at step {job.result['steps']}: {job.result['stopped']}." if job.result.get("stopped") else ""
        st.success(f"Done: the new model is saved.{ended}")
        st.page_link(
            "pages/4_Compare.py",
            label="Compare with its parent",
            query_params={"models": f"{job.parent_model_id},{job.model_id}"},
        )
        st.page_link("pages/3_Retrain.py", label="Train it further", query_params={"model": job.model_id})


st.title("Retrain")
followed = st.query_params.get("job")
active = next(
    (j for j in manager.jobs(states=("running", "paused", "starting", "pausing"), limit=5) if j.operation == "retrain"), None
)
if followed or active:
    with guarded():
        assert followed or active is not None
        watch(followed or active.id)  # type: ignore[union-attr]
    st.divider()
row = chosen_model(manager)
headline(manager, row, keys=("parameters", "sparsity", "decode_ms", "psnr_db", "foreground_psnr_db"))
validate_and_save(manager, row, key="retrain")
onward = st.query_params.get("onward")
preset = st.segmented_control(
    "Preset",
    ["defaults", *RETRAIN_PRESETS],
    default="quick",
    format_func=lambda n: RETRAIN_PRESETS[n].title if n in RETRAIN_PRESETS else "Defaults",
)
if preset in RETRAIN_PRESETS:
    st.caption(RETRAIN_PRESETS[preset].help)
last = manager.evaluation_for(row.id)
start = {
    **(manager.preset_start(row.id, preset) if preset in RETRAIN_PRESETS else {"frozen_part": manager.held_part(row.id)}),
    **{key: last[key] for key in ("data", "image_size") if key in last},
}
if onward:
    with guarded():
        start = manager.remaining(onward).model_dump()
        st.info(
            f"These are the settings of **{manager.job(onward).name}** for the steps that it has left. *Train on* makes a new child "
            "from its last checkpoint with what you change here; the old training stays as it is. The optimizer begins anew.",
            icon=":material/tune:",
        )
        if st.button("Never mind", icon=":material/close:"):
            st.query_params.pop("onward")
            st.rerun()
values = spec_form(
    RetrainSpec, key=f"retrain-{onward or preset}", values=start, choices={"frozen_stages": part_names(manager.shape(row.id)[0])}
)
image_preview(manager, values)
reset_form(manager, row)
image_list(manager, row, values["data"], values["image_size"], followed or (active.id if active else None))
with guarded():
    if left_out() or weighted():
        values = manager.leave_out(manager.weighted(values, dict(weighted())), left_out())
with guarded():
    steps_per_epoch, total = values["steps_per_epoch"], values["n_epochs"] * values["steps_per_epoch"]
    warmup = values["warmup_epochs"] * steps_per_epoch
    points = sorted({round(i * (total - 1) / 199) for i in range(200)}) if total > 1 else [0]
    rates = [
        learning_rate(
            step,
            name=values["lr_schedule_name"],
            init_lr=values["init_lr"],
            total_steps=total,
            warmup_steps=warmup,
            warmup_lr=values["warmup_lr"],
            min_lr=values["min_lr"],
            gamma=values["lr_gamma"],
            step_size=values["lr_step_epochs"] * steps_per_epoch,
        )  # fmt: skip
        for step in points
    ]
    falls = ", before any fall where validation gains nothing" if values["lr_schedule_name"] == "plateau" else ""
    st.caption(f"The learning rate over the {total} steps of this training{falls}")
    st.echarts_chart(line_chart({"learning rate": (points, rates)}, "step"), height=180, key="lr-plot")
    share_chart(manager, values)
    warning = schedule_warning(warmup_steps=warmup, total_steps=total, init_lr=values["init_lr"], warmup_lr=values["warmup_lr"])
    if warning:
        st.warning(warning)
    st.caption("LPIPS needs the package `lpips` with its weights; without them a perceptual weight is refused, with the reason.")
    memory = manager.cost(row.id, image_size=values["image_size"], batch_size=values["batch_size"]).training_bytes / 2**30
    device = manager.devices()[0]
    free = (device.total_bytes - device.used_bytes) / 2**30
    fits = "fits" if memory < free else "**may not fit**"
    st.caption(f"Estimated training memory {memory:.2f} GiB: {fits} in the {free:.1f} GiB free on {device.title}.")
    in_phases = not onward and st.toggle(
        "In the paper's three phases",
        help="All parts; then, at twice the image size, only what touches the latents; then only the end of the decoder. The steps are "
        "shared, and each phase is a model. (The paper's GAN loss of the last phase is not part of it.)",
    )
    label, icon = ("Train on", ":material/tune:") if onward else ("Retrain", ":material/model_training:")
    if st.button(label, type="primary", icon=icon):
        if onward:
            job = manager.train_on(onward, values)[-1]
        elif in_phases:
            job = manager.retrain_in_phases(row.id, values)[0]
        else:
            job = manager.retrain_model(row.id, values)
        st.query_params["job"] = job.id
        st.query_params.pop("onward", None)
        st.toast("The training is queued: follow it at the top of this page.")
        st.rerun()
