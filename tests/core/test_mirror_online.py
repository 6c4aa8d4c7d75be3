"""The mirror against a W&B server of the tests' own: broken lines, refusals, a kill in mid-upload, trainings at work, keys that come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import store.jobs as jobs
from core import mirror
from core.errors import CoreError
from core.mirror import following
from core.mirror.choice import check_project
from core.mirror.following import Follower
from core.mirror.refusals import refusal
from core.mirror.verifying import verify_target
from core.mirror.views import show_models
from core.mirror.wandb_file import read_run, run_files
from core.settings import Settings
from core.specs import ImportSpec, RetrainSpec
from store import MetricWriter, Store, checkpoints, get_model, mirrored, open_store, set_mirrored, verify
from tests.core.mirror_branch import build_branch, content, curve, new_model, one_job, same, start
from tests.core.wandb_server import KEY, Fault, WandbServer, fail_times

LIMIT_S = 60


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that this process's environment names, with a key that it knows."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("OFFSHOOT_MIRROR", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    with WandbServer() as made:
        monkeypatch.setenv("WANDB_BASE_URL", made.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "home")
    yield opened
    opened.close()


def kill_sender() -> None:
    """What a full memory or a power cut does: the sender and the service that it started are gone at once."""
    for process in psutil.Process().children():
        if "core.mirror.sender" in " ".join(process.cmdline()):
            os.killpg(process.pid, signal.SIGKILL)


def assert_mirrored(store: Store, server: WandbServer, done: dict[str, Any], num_steps: int) -> None:
    """Every run, point and edge is there once, none twice."""
    assert set(server.runs) == {job.id for job in done.values()}
    assert {run.state for run in server.runs.values()} == {"finished"}
    retrain = server.run(done["retrain"].id)
    assert sorted(retrain.history) == list(range(len(retrain.history))), "no line is missing"
    for key in ("loss", "learning_rate", "val_psnr_db"):
        wanted = [(step, curve(step)[key]) for step in range(1, num_steps + 1) if key in curve(step)]
        got = retrain.curve(key)
        assert [step for step, _ in got] == [step for step, _ in wanted], key
        assert all(same(float(a), b) for (_, a), (_, b) in zip(got, wanted, strict=True)), key
    for run in server.runs.values():
        steps = Counter(line["_step"] for line in run.history.values())
        assert not steps or max(steps.values()) == 1, (run.name, steps)
    models = [artifact for artifact in server.artifacts.values() if artifact.type == "model"]
    ids = sorted(done[name].model_id for name in ("import", "prune", "retrain"))
    assert sorted(artifact.collection.removeprefix("dcae-") for artifact in models) == ids
    assert {(artifact.state, artifact.version) for artifact in models} == {("COMMITTED", 0)}
    for artifact in models:
        row = get_model(store, artifact.collection.removeprefix("dcae-"))
        assert server.blobs[f"{artifact.id}/model.safetensors"] == store.blobs.read(row.blob_digest)
        assert artifact.metadata["parent_ids"] == [parent for _, parent in row.parents]
    edges = [(f"dcae-{child}", f"dcae-{parent}") for child, parent in store.rows("SELECT child, parent FROM edge")]
    assert sorted(server.model_edges()) == sorted(edges)


def test_broken_lines_and_a_kill_in_mid_upload_leave_each_thing_once(store, server, tmp_path):
    done = build_branch(store, 300)
    before = content(store)
    killed: list[str] = []

    def kill_once() -> None:
        if not killed and server.run(done["retrain"].id).history:
            killed.append("with points at the server, and nothing said of it")
            kill_sender()

    def in_mid_upload(_method: str, path: str, _operation: str, _variables: dict[str, Any]) -> Fault | None:
        return Fault(then=kill_once) if done["retrain"].id in path and "file_stream" in path else None

    server.faults += [
        fail_times(1, Fault(drop=True), path="file_stream"),
        fail_times(1, Fault(drop=True, after=True), path="file_stream"),
        fail_times(1, Fault(status=500), path="file_stream"),
        fail_times(1, Fault(status=502), operation="UpsertBucket"),
        fail_times(1, Fault(drop=True, after=True), operation="CreateArtifact"),
        fail_times(1, Fault(status=500), operation="CreateArtifactFiles"),
        fail_times(1, Fault(drop=True, after=True), operation="UseArtifact"),
        fail_times(1, Fault(status=503), path="/upload/"),
        fail_times(1, Fault(delay_s=1.0), operation="CreateArtifactManifest"),
        in_mid_upload,
    ]
    report = mirror.sync(store, "online", tmp_path / "mirror", run_limit_s=LIMIT_S)
    assert killed and report.problem is not None and report.problem["code"] == "mirror_failed"
    assert set(report.sent) == {done["import"].id, done["prune"].id}
    again = mirror.sync(store, "online", tmp_path / "mirror", run_limit_s=LIMIT_S)
    assert again.problem is None and again.waiting == [], again.problem
    assert_mirrored(store, server, done, 300)
    assert verify_target(store, "online", tmp_path / "mirror").problems == []
    assert content(store) == before and verify(store) == []
    row = mirrored(store, again.target)[done["retrain"].id]
    assert row.remote == f"somebody/offshoot/{done['retrain'].id}" and row.progress["url"].endswith(done["retrain"].id)
    assert mirror.sync(store, "online", tmp_path / "mirror").sent == {}
    server.run(done["retrain"].id).history[7]["loss"] = 0.5
    server.delete(done["prune"].id)
    problems = verify_target(store, "online", tmp_path / "mirror").problems
    assert len(problems) == 2 and "missing" in problems[0] and "loss at step 8" in problems[1]


def test_offline_runs_sent_on_later_have_the_same_edges(store, server, tmp_path):
    done = build_branch(store)
    folder = tmp_path / "mirror"
    report = mirror.mirror_branch(store, done["prune"].model_id, "offline", folder)
    assert list(report.sent) == [done["import"].id, done["prune"].id] and server.runs == {}
    assert list(mirror.mirror_branch(store, done["retrain"].model_id, "offline", folder).sent)[0] == done["retrain"].id
    script = folder / "sync.sh"
    lines = [line.split()[-1] for line in script.read_text().splitlines() if line.startswith("send ")]
    assert lines[:3] == [done[name].id for name in ("import", "prune", "retrain")] and len(lines) == 5
    script.write_text("\n".join(line for line in script.read_text().splitlines() if done["benchmark"].id not in line) + "\n")
    for _ in range(2):  # the second time has nothing to do
        sent = subprocess.run(
            [script], env={**os.environ, "PYTHON": sys.executable, "WANDB_DIR": str(tmp_path)}, check=True, capture_output=True
        )
    assert sent.stdout == b""
    assert set(server.runs) == {done[name].id for name in ("import", "prune", "retrain", "evaluate")}
    edges = [(f"dcae-{child}", f"dcae-{parent}") for child, parent in store.rows("SELECT child, parent FROM edge")]
    assert sorted(server.model_edges()) == sorted(edges)
    run = server.run(done["retrain"].id)
    assert [step for step, _ in run.curve("loss")] == list(range(1, 11)) and run.group == done["import"].model_id
    assert [server.artifacts[ref].collection for ref in server.run(done["evaluate"].id).used] == [
        f"dcae-{done['retrain'].model_id}"
    ]


def test_a_run_deleted_there_and_a_full_account_cost_one_line_each(store, server, tmp_path):
    gone, full, fine = (named_job(store, name) for name in ("gone", "full", "fine"))
    server.deleted.add(gone)
    message = "storage quota exceeded for this account"

    def is_full(_method: str, _path: str, operation: str, variables: dict[str, Any]) -> Fault | None:
        given = variables.get("input") or {}
        mine = given.get("runName") == full and given.get("artifactTypeName") == "model"
        return Fault(status=403, message=message) if operation == "CreateArtifact" and mine else None

    server.faults.append(is_full)
    before = content(store)
    report = mirror.sync(store, "online", tmp_path / "mirror", run_limit_s=LIMIT_S)
    rows = mirrored(store, report.target)
    assert list(report.sent) == [fine] and report.waiting == [full]
    assert rows[gone].progress["state"] == "gone" and rows[gone].progress["error"]["code"] == "mirror_gone"
    said = rows[full].progress["error"]
    assert said["code"] == "mirror_quota" and message in said["message"] and "\n" not in said["message"]
    assert rows[full].progress["retry_at"] > rows[full].updated
    assert content(store) == before and verify(store) == []
    assert mirror.status(store, "online", tmp_path / "mirror").num_waiting == 1
    server.faults.clear()
    assert list(mirror.sync(store, "online", tmp_path / "mirror").sent) == [full], "what is gone is left alone"


def named_job(store: Store, name: str) -> str:
    job = start(store, ImportSpec(source="tiny", random_seed=sum(name.encode())), name=name)
    made = new_model(store, name, ImportSpec(source="tiny", random_seed=sum(name.encode())), "baseline")
    return jobs.complete(store, job, model=made).id


@pytest.mark.parametrize(
    ("key", "fault", "code"),
    [
        ("9876543210" * 4, None, "mirror_key"),
        (KEY, Fault(status=403, message="permission denied: you may not write to this project"), "mirror_rights"),
    ],
)
def test_a_wrong_key_and_missing_rights(store, server, tmp_path, monkeypatch, key, fault, code):
    job_id, other = one_job(store), one_job(store)
    monkeypatch.setenv("WANDB_API_KEY", key)
    if fault is not None:
        server.faults.append(lambda _m, _p, operation, _v: fault if operation == "UpsertBucket" else None)
    report = mirror.sync(store, "online", tmp_path / "mirror", run_limit_s=LIMIT_S)
    assert report.problem is not None and report.problem["code"] == code, report.problem
    assert "\n" not in report.problem["message"] and report.problem["next"]
    assert report.sent == {} and report.waiting == [job_id, other] and verify(store) == []
    assert len(mirrored(store, report.target)) == 1, "the second run was not even tried"
    assert key not in (tmp_path / "mirror" / "mirror.log").read_text()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("run j_1 was previously created and deleted; try a new run name (409)", "mirror_gone"),
        ("returned error 402: quota", "mirror_quota"),
        ("returned error 401 Unauthorized: user is not logged in", "mirror_key"),
        ("API key must have 40+ characters, has 7", "mirror_key"),
        ("returned error 403: permission denied", "mirror_rights"),
        ("Invalid project name 'a/b': cannot contain characters '/\\#?%:'", "mirror_name"),
        ("dial tcp 127.0.0.1:9: connection refused", "mirror_unreachable"),
    ],
)
def test_what_wandb_says_is_one_of_a_few_errors(said, code):
    found = refusal(ValueError(f"{said}\nand more"), "x", at_start=True)
    assert found is not None and found.code == code and "\n" not in found.message and found.next and found.legal
    unknown = refusal(ValueError("something new"), "x", at_start=False)
    assert unknown is None, "in the middle of a run unknown words are a failure of that run alone"


@pytest.mark.parametrize("name", ["", "a/b", "x" * 129, "50%"])
def test_a_project_name_that_wandb_refuses_is_refused_before(name):
    with pytest.raises(CoreError) as caught:
        check_project(name)
    assert caught.value.code == "mirror_project"


def test_a_comparison_is_saved_and_saved_again_in_its_place(store, server, tmp_path):
    done = build_branch(store)
    models = [done["import"].model_id, done["retrain"].model_id]
    first = show_models(store, models, "online", tmp_path / "mirror")
    assert set(first.urls) == {"report", "workspace"} and len(server.views) == 2
    again = show_models(store, models, "online", tmp_path / "mirror")
    assert again.urls == first.urls and len(server.views) == 2
    assert sorted(view["type"] for view in server.views.values()) == ["project-view", "runs"]
    for view in server.views.values():
        assert (view["entityName"], view["projectName"]) == ("somebody", "offshoot")
        assert done["evaluate"].id in view["spec"]
    assert mirror.status(store, "online", tmp_path / "mirror").num_waiting == 5, "views are no runs"


# The follower -------------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds as a test wants them."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def checkpoint(store: Store, job: Any, step: int) -> None:
    folder = store.job_folder(job.id) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    checkpoints.record(store, job, step, folder, "every")


def log_steps(store: Store, job: Any, first: int, last: int, **more: Any) -> None:
    with MetricWriter(store, job.id, **more) as writer:
        for step in range(first, last + 1):
            writer.log(step, curve(step))


def test_a_training_at_work_is_sent_up_to_its_checkpoint_and_stays_one_run(store, server, tmp_path):
    job_id = one_job(store)
    (baseline,) = [row for (row,) in store.rows("SELECT id FROM model")]
    retrain = RetrainSpec(n_epochs=1, steps_per_epoch=100, warmup_epochs=0)
    job = start(store, retrain, baseline)
    follower = Follower(store, Settings(home=store.root), folder=tmp_path / "mirror", run_limit_s=LIMIT_S)
    try:
        log_steps(store, job, 1, 30)
        assert follower.turn() is not None
        assert set(server.runs) == {job_id}, "no checkpoint, nothing to rely on"
        checkpoint(store, job, 20)
        follower.turn()
        jobs.request(store, job, "pause")
        jobs.paused(store, job)
        follower.turn()
        run = server.run(job.id)
        assert [line["_step"] for line in run.history.values()] == list(range(1, 21))
        assert run.state == "preempted" and follower.live == {}
        jobs.request(store, job, "resume")
        log_steps(store, job, 21, 60, resume_from=20, attempt=2)
        checkpoint(store, job, 50)
        follower.turn()
        assert follower.live == {job.id: 50}
        row = mirrored(store, mirror.resolve_target(store, "online").name)[job.id]
        assert row.progress["state"] == "live" and row.progress["step"] == 50
        log_steps(store, job, 61, 100, attempt=2)
        made = new_model(store, "longer", retrain, "retrained", (baseline,))
        jobs.complete(store, jobs.get_job(store, job.id), model=made)
        follower.turn()
    finally:
        follower.close()
    run = server.run(job.id)
    assert set(server.runs) == {job_id, job.id} and run.state == "finished"
    assert [step for step, _ in run.curve("loss")] == list(range(1, 101))
    assert verify_target(store, "online", tmp_path / "mirror").problems == []


def test_what_fails_is_tried_again_later_and_a_key_that_comes_is_used(store, server, tmp_path, monkeypatch):
    job_id = one_job(store)
    clock = Clock()
    monkeypatch.delenv("WANDB_API_KEY")
    follower = Follower(store, Settings(home=store.root), folder=tmp_path / "mirror", run_limit_s=LIMIT_S, clock=clock)
    assert follower.turn() is None and not (tmp_path / "mirror").exists(), "without a key nothing is written"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    server.faults.append(lambda _m, _p, operation, _v: Fault(status=403, message="permission denied"))
    try:
        assert follower.turn() == following.POLL_S
        name = mirror.resolve_target(store, "online").name
        row = mirrored(store, name)[job_id]
        assert row.progress["state"] == "failed" and row.progress["attempts"] == 1
        assert mirror.status(store, "online", tmp_path / "mirror").next_try == row.progress["retry_at"]
        asked = len(server.asked)
        follower.turn()
        assert len(server.asked) == asked, "all wait"
        server.faults.clear()
        clock.now += 600
        store_retry(store, name, job_id, "2999-01-01T00:00:00+00:00")
        follower.turn()
        assert mirrored(store, name)[job_id].progress["state"] == "failed", "its own time has not come either"
        store_retry(store, name, job_id, "2001-01-01T00:00:00+00:00")
        follower.turn()
        progress = mirrored(store, name)[job_id].progress
        assert progress["state"] == "sent" and set(server.runs) == {job_id}, progress
        clock.now += following.LINGER_S + 1
        assert follower.turn() is None, "nothing is left to wait for"
    finally:
        follower.close()


def store_retry(store: Store, target: str, job_id: str, moment: str) -> None:
    row = mirrored(store, target)[job_id]
    set_mirrored(store, target, job_id, "", {**row.progress, "retry_at": moment})


def test_a_follower_is_detached_alone_and_ends_by_itself(store, tmp_path, monkeypatch):
    monkeypatch.delenv("OFFSHOOT_MIRROR", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    job_id, settings = one_job(store), Settings(home=store.root)
    assert not mirror.ensure_follower(store, settings), "auto without a key"
    mirror.save_choice(store, settings, mode="offline")
    with following._following(store) as alone:
        assert alone and mirror.is_followed(store)
        assert not mirror.ensure_follower(store, settings), "one is enough"
        following.follow(store, settings)  # a second one ends at once
    assert mirror.ensure_follower(store, settings)
    process = following._STARTED[store.root.resolve()]
    try:
        until = time.monotonic() + 60
        while mirror.status(store, "offline").num_waiting and time.monotonic() < until:
            time.sleep(0.1)
        assert [read_run(path).id for path in run_files(store.root / "mirror")] == [job_id]
        mirror.save_choice(store, settings, mode="off")
        assert process.wait(timeout=30) == 0, "it looks at the choice again and again"
    finally:
        process.kill()
        process.wait()


def test_the_choice_on_the_page_stands_below_the_environment(store, monkeypatch):
    monkeypatch.setenv("OFFSHOOT_MIRROR", "off")
    settings = Settings(home=store.root)
    assert mirror.fixed_fields(settings) == ("mirror",)
    with pytest.raises(CoreError, match="is set to “off” elsewhere") as caught:
        mirror.save_choice(store, settings, mode="online")
    assert caught.value.code == "mirror_fixed"
    assert mirror.save_choice(store, settings, project="shared").wandb_project == "shared"
    monkeypatch.delenv("OFFSHOOT_MIRROR")
    assert mirror.save_choice(store, Settings(home=store.root), mode="offline").mirror == "offline"
    assert mirror.chosen_settings(store, settings).mirror == "off"
    (store.root / "mirror.json").write_text("{")
    with pytest.raises(CoreError, match="cannot be read") as caught:
        mirror.chosen_settings(store, settings)
    assert caught.value.code == "mirror_choice"


def test_waits_grow_to_ten_minutes():
    assert [mirror.replay.retry_wait_s(count) for count in (1, 2, 3, 8, 99)] == [5, 10, 20, 600, 600]
