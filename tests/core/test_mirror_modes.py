"""The mirror's order and names, its modes, and what it does where something is broken; offline, against no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import store.jobs as jobs
from core import mirror
from core.errors import CoreError
from core.mirror import modes
from core.mirror import runs as mirror_runs
from core.mirror.wandb_file import read_run, run_files
from core.model_manager import ModelManager
from core.settings import Settings
from core.specs import PruneSpec
from store import (
    get_model,
    mirrored,
    verify,
)
from tests.core.mirror_branch import (
    KEY,
    build_branch,
    content,
    new_model,
    no_key,
    one_job,
    start,
    store,
)

__all__ = ["no_key", "store"]


# Order, names, catching up ------------------------------------------------------------------------------------------------


def test_parents_go_before_children_whatever_the_clock_says(store):
    done = build_branch(store)
    with store.write() as session:
        session.connection().exec_driver_sql("UPDATE job SET ended='2001-01-01' WHERE id=?", (done["evaluate"].id,))
    order = mirror.replay.finished(store)
    assert set(order) == {job.id for job in done.values()}
    for before, after in (("import", "prune"), ("prune", "retrain"), ("retrain", "evaluate"), ("retrain", "benchmark")):
        assert order.index(done[before].id) < order.index(done[after].id)


def test_a_branch_leaves_its_sisters_out(store):
    done = build_branch(store)
    job = start(store, PruneSpec(rate=0.3), done["import"].model_id)
    sister = jobs.complete(
        store, job, model=new_model(store, "sister", PruneSpec(rate=0.3), "pruned", (done["import"].model_id,))
    )
    report = mirror.mirror_branch(store, sister.model_id, "off")
    assert report.waiting == [done["import"].id, job.id]


def test_the_name_tells_the_nearest_pruning(store):
    done = build_branch(store)
    spec = PruneSpec(method="global_magnitude", rate=None, threshold=0.01)
    job = start(store, spec, done["retrain"].model_id)
    parents = (done["retrain"].model_id,)
    job = jobs.complete(store, job, model=new_model(store, "again", spec, "pruned", parents, facts={"sparsity": 0.6667}))
    assert mirror_runs.run_name(store, job).startswith("dcae_globalmagnitude_0.67_"), "a threshold asks for no ratio"


def test_deleted_weights_leave_the_ids_and_a_note(store, tmp_path):
    done = build_branch(store)
    pruned = get_model(store, done["prune"].model_id)
    store.blobs.remove(pruned.blob_digest)
    report = mirror.sync(store, "offline", tmp_path / "mirror")
    assert report.problem is None and len(report.sent) == 5
    (note,) = [note for note in report.notes if "are not in the store any more" in note]
    assert pruned.id in note
    (run,) = [run for run in map(read_run, run_files(tmp_path / "mirror")) if run.id == done["retrain"].id]
    assert run.config["parent_ids"] == [pruned.id]
    assert [artifact.uses for artifact in run.artifacts if artifact.type == "model"] == [False]


# Modes, and a mirror that is broken ---------------------------------------------------------------------------------------


def test_off_and_auto_without_a_key_write_nothing(store, tmp_path):
    job_id = one_job(store)
    for mode in ("off", "auto"):
        report = mirror.sync(store, mode, tmp_path / "mirror")
        assert report.sent == {} and report.waiting == [job_id] and report.problem is None
        assert "Waiting: 1 run." in report.message
    assert not (tmp_path / "mirror").exists()
    assert mirrored(store, report.target) == {}


def test_a_choice_is_kept_for_the_store(tmp_path):
    for wanted in ("off", "auto"):
        manager = ModelManager(settings=Settings(home=tmp_path / "home"))
        assert manager.set_mirror(wanted, "pacman").mode == wanted
        manager.store.close()
        again = ModelManager(settings=Settings(home=tmp_path / "home"))
        assert (again.mirror_settings().mirror, again.mirror_settings().wandb_project) == (wanted, "pacman")
        with pytest.raises(CoreError, match="no mode"):
            again.set_mirror("sideways")
        again.store.close()


@pytest.mark.parametrize("found", ["environment", "netrc"])
def test_auto_is_online_where_a_key_is_found(store, tmp_path, monkeypatch, found):
    assert modes.resolve_target(store, "auto").sends is None
    if found == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
        (tmp_path / "no-netrc").chmod(0o600)
    assert modes.resolve_target(store, "auto").sends == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert modes.resolve_target(store, "auto").name.startswith("wandb-online:127.0.0.1:9/")


def test_a_mode_that_is_none(store, tmp_path):
    one_job(store)
    with pytest.raises(CoreError, match="no mode") as caught:
        mirror.sync(store, "sideways", tmp_path / "mirror")
    assert (caught.value.code, caught.value.legal) == ("mirror_mode", ["auto", "off", "offline", "online"])


def test_online_without_a_key(store):
    one_job(store)
    with pytest.raises(CoreError, match="no W&B key") as caught:
        mirror.sync(store, "online")
    assert caught.value.code == "no_key"
    found = mirror.status(store, "online")
    assert found.num_waiting == 1 and found.problem is not None and found.problem["code"] == "no_key"


def test_a_folder_that_cannot_be_written(store, tmp_path):
    one_job(store)
    before = content(store)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CoreError, match="cannot write") as caught:
        mirror.sync(store, "offline", tmp_path / "file" / "mirror")
    assert caught.value.code == "mirror_folder" and caught.value.next
    assert content(store) == before and verify(store) == []
    assert mirror.status(store, "offline", tmp_path / "file" / "mirror").num_waiting == 1


def test_a_run_that_takes_too_long_is_ended_and_sent_later(store, tmp_path):
    job_id, folder = one_job(store), tmp_path / "mirror"
    before = content(store)
    report = mirror.sync(store, "offline", folder, run_limit_s=0.05)
    assert report.problem is not None and report.problem["code"] == "mirror_timeout"
    assert report.sent == {} and report.waiting == [job_id] and content(store) == before
    assert mirror.status(store, "offline", folder).problem == report.problem
    assert not any(map(is_mirror, psutil.Process().children(recursive=True))), "the sender is gone"
    left = folder / "wandb" / f"offline-run-20260101_000000-{job_id}"  # what a mirror killed a little later leaves
    left.mkdir(parents=True)
    (left / f"run-{job_id}.wandb").write_bytes(b":W&B half")
    assert list(mirror.sync(store, "offline", folder).sent) == [job_id]
    (path,) = run_files(folder)
    assert path.parent != left and read_run(path).id == job_id


def test_a_sender_that_dies_says_so(store, tmp_path, monkeypatch):
    job_id = one_job(store)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "wandb.py").write_text("raise SystemExit('wandb is broken here')\n")
    monkeypatch.setattr("core.mirror.process.ROOT", f"{broken}{os.pathsep}{Path(__file__).resolve().parents[2]}")
    report = mirror.sync(store, "offline", tmp_path / "mirror")
    assert report.problem is not None and "wandb is broken here" in report.problem["message"]
    assert report.waiting == [job_id]


def test_a_failed_run_holds_back_its_descendants_only(store, tmp_path):
    done = build_branch(store)
    other = one_job(store)
    with store.write() as session:  # what cannot be replayed: a point that is no packed row of its names
        session.connection().exec_driver_sql("UPDATE metric SET packed=x'00' WHERE job=? AND step=5", (done["retrain"].id,))
    report = mirror.sync(store, "offline", tmp_path / "mirror")
    assert set(report.sent) == {done["import"].id, done["prune"].id, other}
    assert report.waiting == [done["retrain"].id, done["evaluate"].id, done["benchmark"].id]
    assert report.problem is not None and report.problem["given"] == done["retrain"].id


def test_no_server_to_be_reached(store, tmp_path, monkeypatch):
    job_id, other = one_job(store), one_job(store)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    report = mirror.sync(store, "online", tmp_path / "mirror", run_limit_s=24)
    assert report.problem is not None and report.problem["code"] == "mirror_unreachable"
    assert "connection refused" in report.problem["message"] and "\n" not in report.problem["message"]
    assert KEY not in (tmp_path / "mirror" / "mirror.log").read_text()
    assert report.sent == {} and report.waiting == [job_id, other] and verify(store) == []
    assert len(mirrored(store, report.target)) == 1, "the second run was not even tried"
    deadline = time.monotonic() + 20
    while services := [path for path in map(service_folder, psutil.process_iter()) if path.startswith(str(tmp_path))]:
        assert time.monotonic() < deadline, f"left behind: {services}"
        time.sleep(0.1)


def is_mirror(process: psutil.Process) -> bool:
    """Whether a process sends runs; one that ended meanwhile does not."""
    try:
        return "core.mirror" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def service_folder(process: psutil.Process) -> str:
    """The mirror's folder of a wandb service; empty for any other process."""
    try:
        return process.environ().get("WANDB_DIR", "") if "wandb" in process.name() else ""
    except psutil.Error:
        return ""


def test_one_mirror_at_a_time(store, tmp_path):
    one_job(store)
    with mirror.replay.only_one(store), pytest.raises(CoreError, match="at work already") as caught:
        mirror.sync(store, "offline", tmp_path / "mirror")
    assert caught.value.code == "mirror_busy"
    assert not (tmp_path / "mirror" / "wandb").exists()


# Processes ----------------------------------------------------------------------------------------------------------------


def test_the_service_never_imports_wandb():
    code = "import sys, core.mirror, core.terminal.mirror; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_the_terminal_verbs(store, tmp_path, capsys):
    import typer

    from core.terminal import app as terminal
    from core.terminal import mirror as verbs

    job_id = one_job(store)
    if "mirror" not in {group.name for group in terminal.app.registered_groups}:
        terminal.app.add_typer(verbs.app, name="mirror")
    assert isinstance(verbs.app, typer.Typer)
    folder = str(tmp_path / "mirror")

    def told(*arguments: str) -> dict[str, Any]:
        try:
            terminal.main(["--store", str(store.root), "--json", "mirror", *arguments])
        except SystemExit as end:
            assert end.code in (0, 1, 2)
        return json.loads(capsys.readouterr().out)

    assert told("status", "--mode", "offline", "--folder", folder)["data"]["num_waiting"] == 1
    assert list(told("sync", "base", "--mode", "offline", "--folder", folder)["data"]["sent"]) == [job_id]
    assert told("sync", "--mode", "offline", "--folder", folder)["data"]["sent"] == {}
    assert told("verify", "--mode", "offline", "--folder", folder)["data"] == {
        "target": f"wandb-offline:{folder}", "num_runs": 1, "num_waiting": 0, "problems": [],
    }  # fmt: skip
    assert told("verify")["error"]["code"] == "mirror_nowhere"
    assert told("sync", "--mode", "sideways")["error"]["code"] == "mirror_mode"
    assert told("set", "off", "--project", "shared")["data"]["line"] == "The W&B mirror is off."
    assert told("status")["data"]["mode"] == "off"
    assert told("set", "sideways")["error"]["code"] == "mirror_mode"
