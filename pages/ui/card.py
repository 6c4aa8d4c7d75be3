"""A model's card on the Lineage page: its story, what can be done with it, and the store's housekeeping."""

from __future__ import annotations

import tempfile
from pathlib import Path

import streamlit as st

from core.compare import MAIN_METRICS, METRICS
from core.model_manager import ModelManager
from core.reproduction import reproduction_lines
from pages.ui.boot import describe, guarded, job_bar, show_error
from pages.ui.chain import show_log
from pages.ui.figures import pictures
from store import ModelRow


def story(manager: ModelManager, row: ModelRow) -> None:
    """The chain from the baseline, what changed from the parent, reconstructions, the job's log, and copies elsewhere."""
    st.markdown("**How it came about**")
    for step in manager.ancestry(row.id):
        st.markdown(f"- {describe(step)} · `{step.id}`")
        st.caption(manager.spec_line(step.id))
    if row.parent_id is not None:
        with st.expander("What changed from its parent", icon=":material/difference:"):
            _changes(manager, row)
    with st.expander("Reconstructions", icon=":material/image:"):
        pictures(manager, row, count=4)
    job = manager.making_job(row.id)
    if job is not None:
        with st.expander("Job log", icon=":material/article:"):
            st.caption(f"{job.operation} {job.id} on {job.device}, ended {str(job.ended)[:19].replace('T', ' ')} UTC")
            show_log(manager, job.id, last=200)
    copies = manager.copies(row.id)
    if copies:
        with st.expander(f"Mirrored: {len(copies)} runs", icon=":material/cloud_done:"):
            st.caption("  \n".join(copies))


def _changes(manager: ModelManager, row: ModelRow) -> None:
    figures = manager.compare([row.id]).figures[row.id]
    told = [
        f"- {METRICS[key].title}: {figure.metric.text(figure.value)}, {figure.change_text(figure.against_parent)}"
        for key, figure in figures.items()
        if key in MAIN_METRICS and figure.against_parent is not None
    ]
    st.markdown("\n".join(told) or "No figure of both was measured alike.")
    st.caption(manager.spec_line(row.id))
    widths = manager.width_changes(row.id)
    if widths:
        st.dataframe(
            [{"site": w.site, "kind": w.kind, "parent": w.before, "this": w.after, "kept": f"{w.after / w.before:.0%}"} for w in widths],
            hide_index=True, height=min(300, 38 + 35 * len(widths)),
        )  # fmt: skip
    else:
        st.caption("Every site is as wide as the parent's.")


def words(manager: ModelManager, row: ModelRow) -> None:
    """Name, note, tags and aliases."""
    note = st.text_area("Note", row.note, key=f"note-{row.id}")
    if note != row.note:
        manager.annotate(row.id, note=note)
        st.toast("Note saved.")
    name = st.text_input("Name", row.name, key=f"name-{row.id}-{row.name}")
    if name and name != row.name:
        manager.annotate(row.id, name=name)
        st.rerun()
    tag = st.text_input("Add a tag", key=f"tag-{row.id}-{len(row.tags)}")
    if tag:
        manager.annotate(row.id, tag=tag)
        st.rerun()
    if row.tags:
        kept = st.pills("Tags (a click takes one off)", row.tags, key=f"tags-{row.id}-{len(row.tags)}")
        if kept:
            manager.annotate(row.id, untag=kept)
            st.rerun()
    alias = st.text_input("Point an alias here", key=f"alias-{row.id}-{len(row.aliases)}", placeholder="best")
    if alias:
        manager.annotate(row.id, alias=alias)
        st.rerun()


def again(manager: ModelManager, row: ModelRow) -> None:
    """Reproduce, and the scripts and the archive that do it elsewhere."""
    with st.container(horizontal=True):
        job = manager.reproduction_job(row.id)
        busy = job is not None and job.state not in ("done", "failed")
        if st.button(
            "Reproduce", icon=":material/replay:", disabled=busy, key="reproduce",
            help="Runs the whole chain again from its baseline, and compares: bit-identical, or by how much it differs.",
        ):  # fmt: skip
            manager.reproduce_model(row.id)
            st.rerun()
        for kind, title, suffix in (("python", "Python script", "py"), ("terminal", "Terminal script", "sh")):
            st.download_button(
                title, data=_script(manager, row.id, kind), file_name=f"make_{row.id}.{suffix}", key=f"script-{kind}",
                icon=":material/code:", on_click="ignore", help="Run on an empty store, it makes this very id.",
            )  # fmt: skip
        st.download_button(
            "Archive", data=lambda: _archive(manager, row.id), file_name=f"{row.id}.offshoot.zip", key="archive",
            icon=":material/archive:", on_click="ignore",
            help="This model and all that it goes back to, with figures and curves, for another store.",
        )  # fmt: skip
    _reproduction(manager, row.id)


def _script(manager: ModelManager, ref: str, kind: str) -> str:
    with guarded():
        return manager.script(ref, kind)
    return ""


def _archive(manager: ModelManager, ref: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        return manager.export_branch(ref, Path(scratch) / "branch.zip").path.read_bytes()


@st.fragment(run_every=1.0)
def _reproduction(_manager: ModelManager, ref: str) -> None:
    """The last rerun: as it goes, or what it found."""
    job = _manager.reproduction_job(ref)
    if job is None:
        return
    if job.state == "done":
        identical = job.result["identical"]
        mark = ":green[:material/check_circle: bit-identical]" if identical else ":orange[:material/difference: other bits]"
        st.markdown(f"Reproduced {str(job.ended)[:16].replace('T', ' ')} UTC: {mark}")
        st.caption("  \n".join(reproduction_lines(job.result)))
        return
    if job.state == "failed" and job.error:
        show_error(job.error)
    job_bar(_manager, job, key="reproduce")


def delete_popover(manager: ModelManager, row: ModelRow) -> None:
    """What would go, and the deed; *Deleted models* undoes it."""
    with st.popover("Delete", icon=":material/delete:", on_change="rerun", key="delete") as popover:
        if not popover.open:
            return
        alone = bool(manager.deletion(row.id).names[1:]) and st.toggle("This model alone", key="delete-alone")
        going = manager.deletion(row.id, alone=alone)
        count = f"{len(going.names)} model{'s' if len(going.names) > 1 else ''} would go"
        st.markdown(f"**{count}**: " + ", ".join(going.names[:20]) + (" …" if len(going.names) > 20 else ""))
        st.caption(f"The next clean-up frees {going.bytes / 1e6:.2f} MB; until then *Deleted models* below undoes it.")
        if going.left_behind:
            st.caption(f"{len(going.left_behind)} descendants stay, under a tombstone.")
        if going.jobs_in_the_way:
            st.caption(f"In the way: {', '.join(going.jobs_in_the_way)}. Cancel them first.")
        if going.copies:
            st.caption("Copies that stay: " + "; ".join(going.copies[:10]))
        if st.button("Delete", type="primary", key="delete-now", disabled=bool(going.jobs_in_the_way)):
            manager.delete(row.id, alone=alone)
            st.query_params.pop("model", None)
            st.rerun()


def housekeeping(manager: ModelManager) -> None:
    """Deleted models and their restoring, the clean-up, verification, and archives from elsewhere."""
    gone = manager.deleted_models()
    with st.expander(f"Deleted models ({len(gone)})", icon=":material/restore_from_trash:"):
        for row in gone[:50]:
            left, right = st.columns([4, 1], vertical_alignment="center")
            left.caption(f"{row.name} · {row.id} · deleted {str(row.deleted)[:19].replace('T', ' ')} UTC")
            if right.button("Restore", key=f"restore-{row.id}"):
                manager.restore(row.id)
                st.rerun()
        if len(gone) > 50:
            st.caption(f"And {len(gone) - 50} more; restoring one brings back all that was deleted with it.")
        count, size = manager.cleanable(with_orphans=False)
        st.caption(
            f"A clean-up makes {count} deletions final and frees {size / 1e6:.2f} MB, and what killed processes left behind."
        )
        if st.button("Clean up", key="clean-up"):
            st.session_state["cleaned"] = manager.clean_up()
            st.rerun()
        report = st.session_state.get("cleaned")
        if report is not None:
            st.caption(
                f"Cleaned: {len(report.models)} models; before {report.bytes_before / 1e6:.2f} MB, after "
                f"{report.bytes_after / 1e6:.2f} MB."
            )
    with st.expander("Verify, import", icon=":material/verified:"):
        if st.button("Verify everything", key="verify", help="Derives every id again, hashes every file, looks for orphans."):
            problems = manager.verify()
            for problem in problems:
                st.error(f"{problem.model_id} {problem.message}".strip())
            if not problems:
                st.success("Everything is as it was stored.")
        given = st.file_uploader("An archive of a branch", type=["zip"], key="import-archive")
        if given is not None and st.button("Import the archive"):
            with guarded(), tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "archive.zip"
                path.write_bytes(given.getvalue())
                found = manager.import_archive(path)
                st.success(f"{len(found.models)} models are new, {len(found.known)} were here already.")
