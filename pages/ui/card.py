"""A model's card on the Lineage page: its story, what can be done with it, and the store's housekeeping."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st

from core.compare import MAIN_METRICS
from core.errors import CoreError
from core.model_manager import ModelManager
from core.reproduction import reproduction_lines
from core.views import plain
from pages.ui.boot import describe, guarded, job_bar, show_error
from pages.ui.chain import show_log
from pages.ui.figures import column_widths, pictures
from store import JobRow, ModelRow


def lazy(title: str, icon: str, key: str, show: Callable[[], None]) -> None:
    """An expander that is filled once it is open: what nobody looks at is neither read nor sent.

    The title must not change with what is inside: Streamlit would take it for another one, and close it.
    """
    with st.expander(title, icon=icon, on_change="rerun", key=key) as part:
        if part.open:
            show()


def story(manager: ModelManager, row: ModelRow) -> None:
    """The chain from the baseline, what changed from the parent, reconstructions, the job's log, and copies elsewhere."""
    told = ["**How it came about**"]
    for step in manager.ancestry(row.id):
        made_by = manager.spec_line(step.id).replace("[", r"\[").replace("]", r"\]")
        told.append(f"- {describe(step)} · `{step.id}`  \n  :gray[{made_by}]")
    st.markdown("\n".join(told))  # one element: a browser takes longer over many
    lazy("All figures", ":material/table_chart:", "card-figures", partial(_figures, manager, row))
    if row.parent_id is not None:
        lazy("What changed from its parent", ":material/difference:", "card-changes", partial(_changes, manager, row))
    lazy("Reconstructions", ":material/image:", "card-pictures", partial(pictures, manager, row, count=4))
    job = manager.making_job(row.id)
    if job is not None:
        lazy("Job log", ":material/article:", "card-log", partial(_log, manager, job))
    copies = manager.copies(row.id)
    if copies:
        lazy("Mirrored runs", ":material/cloud_done:", "card-copies", partial(_copies, copies))


def _copies(copies: list[str]) -> None:
    st.caption("  \n".join(copies))


def _figures(manager: ModelManager, row: ModelRow) -> None:
    """Every figure that was measured, with its change against parent and baseline."""
    shown = [figure for figure in manager.compare([row.id]).figures[row.id].values() if figure.value is not None]
    table = [
        {
            "figure": figure.metric.title,
            "value": figure.metric.text(figure.value),
            "against parent": "" if figure.against_parent is None else figure.change_text(figure.against_parent),
            "against baseline": "" if figure.against_baseline is None else figure.change_text(figure.against_baseline),
        }
        for figure in shown
    ]
    st.dataframe(table, hide_index=True, column_config=column_widths(table), height=38 + 35 * len(table))


def _log(manager: ModelManager, job: JobRow) -> None:
    used = manager.machine_used(job.id)
    st.caption(
        f"{job.operation} {job.id} on {job.device}, ended {str(job.ended)[:19].replace('T', ' ')} UTC{f': {used}' if used else ''}."
    )
    show_log(manager, job.id, last=200)


def _changes(manager: ModelManager, row: ModelRow) -> None:
    settings = manager.setting_changes(row.id)
    if settings.changes:
        since = f"those of {settings.since.name}" if settings.since is not None else "the defaults"
        st.caption(f"Settings of *{settings.operation}* that are not {since}")
        table = [{"setting": one.name, "before": plain(one.before), "now": plain(one.after)} for one in settings.changes]
        st.dataframe(table, hide_index=True, height=min(300, 38 + 35 * len(table)))
    figures = manager.compare([row.id]).figures[row.id]
    told = [
        f"- {figure.metric.title}: {figure.metric.text(figure.value)}, {figure.change_text(figure.against_parent)}"
        for key, figure in figures.items()
        if key in MAIN_METRICS and figure.against_parent is not None
    ]
    st.markdown("\n".join(told) or "No figure of both was measured alike.")
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


def again(manager: ModelManager, row: ModelRow, *, has_offspring: bool) -> None:
    """Reproduce, and the scripts and archives that do it elsewhere."""
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
                title, data=partial(_script, manager, row.id, kind), file_name=f"make_{row.id}.{suffix}", key=f"script-{kind}",
                icon=":material/code:", on_click="ignore", help="Run on an empty store, it makes this very id.",
            )  # fmt: skip
        archives = {"Archive": "This model and all that it goes back to, with figures and curves, for another store."}
        if has_offspring:
            archives["Archive with offspring"] = "All that was made from it too."
        for title, told in archives.items():
            wide = title != "Archive"
            st.download_button(
                title, data=partial(_archive, manager, row.id, wide), file_name=f"{row.id}{'-all' if wide else ''}.offshoot.zip",
                key=f"archive-{wide}", icon=":material/archive:", on_click="ignore", help=told,
            )  # fmt: skip
    _reproduction(manager, row.id)


def _script(manager: ModelManager, ref: str, kind: str) -> str:
    """Made when it is asked for; where it cannot be, the file says why."""
    try:
        return manager.script(ref, kind)
    except CoreError as error:
        return f"# {error}\n"


def _archive(manager: ModelManager, ref: str, with_descendants: bool) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        return manager.export_branch(ref, Path(scratch) / "branch.zip", with_descendants=with_descendants).path.read_bytes()


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
        if going.not_made_of_it:
            st.caption(f"Not made of it, but learnt from it or keep its plan: {', '.join(going.not_made_of_it[:20])}.")
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
    lazy("Deleted models, clean-up", ":material/restore_from_trash:", "card-deleted", partial(_deleted, manager))
    lazy("Verify, import", ":material/verified:", "card-verify", partial(_verify_import, manager))


def _deleted(manager: ModelManager) -> None:
    gone = manager.deleted_models()
    st.caption(f"{len(gone)} can be restored." if gone else "None is left that could be restored.")
    for row in gone[:50]:
        left, right = st.columns([4, 1], vertical_alignment="center")
        left.caption(f"{row.name} · {row.id} · deleted {str(row.deleted)[:19].replace('T', ' ')} UTC")
        if right.button("Restore", key=f"restore-{row.id}"):
            manager.restore(row.id)
            st.rerun()
    if len(gone) > 50:
        st.caption(f"And {len(gone) - 50} more; restoring one brings back all that was deleted with it.")
    count, size = manager.cleanable(with_orphans=False)
    st.caption(f"A clean-up makes {count} deletions final and frees {size / 1e6:.2f} MB, and what killed processes left behind.")
    if st.button("Clean up", key="clean-up"):
        st.session_state["cleaned"] = manager.clean_up()
        st.rerun()
    report = st.session_state.get("cleaned")
    if report is not None:
        st.caption(
            f"Cleaned: {len(report.models)} models; before {report.bytes_before / 1e6:.2f} MB, after "
            f"{report.bytes_after / 1e6:.2f} MB."
        )


def _verify_import(manager: ModelManager) -> None:
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
