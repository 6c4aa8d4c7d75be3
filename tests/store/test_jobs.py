from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from store import (
    NewImage,
    NewScores,
    Store,
    StoreError,
    get_model,
    jobs,
    legal_controls,
    list_models,
    open_store,
    scores,
)
from store.job_control import MAX_REQUEUES
from store.references import sweep
from tests.store.builders import PROTOCOL, model, new_model, running_job

ERROR = {"code": "bad_input", "message": "no images", "given": "x", "legal": "y", "next": "z"}


def test_a_job_from_submit_to_done(store: Store) -> None:
    base = model(store, "base")
    job = jobs.submit(store, "prune", {"rate": 0.5}, parent="base", device="cpu", name="halve it")
    assert (job.state, job.parent_model_id, job.spec, job.attempt) == ("queued", base.id, {"rate": 0.5}, 1)
    assert jobs.claim(store, "cuda:0", "w") is None
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None and claimed.id == job.id and claimed.state == "starting"
    assert jobs.claim(store, "cpu", "w") is None
    assert jobs.set_running(store, claimed, 77, 5.0).state == "running"
    jobs.set_progress(store, claimed, 0.25, "step 1 of 4", 12.0)
    jobs.heartbeat(store, claimed)
    shown = jobs.get_job(store, job.id[:20])
    assert (shown.fraction, shown.message, shown.eta_s, shown.pid, shown.pid_started) == (
        0.25,
        "step 1 of 4",
        12.0,
        77,
        5.0,
    )
    assert shown.heartbeat is not None
    entry = NewScores(PROTOCOL, "test", {"psnr_db": 30.0}, {"psnr_db": [29.0, 31.0]}, ["a", "b"], [NewImage(0, b"png")])
    plan = store.blobs.put_bytes(b"plan")
    done = jobs.complete(
        store,
        claimed,
        model=new_model(store, "half", (base.id,)),
        scores=[entry],
        measurements=[{"device": "cpu", "dtype": "float32", "models": [{"model_id": base.id, "decode_median_ms": 2.0}]}],
        result={"achieved": 0.49, "plan_digest": plan},
    )
    assert (done.state, done.fraction, done.pid, done.result["achieved"]) == ("done", 1.0, None, 0.49)
    made = get_model(store, str(done.model_id))
    assert (made.name, made.job_id) == ("half", job.id)
    assert scores.scores(store, made.id) == {"psnr_db": 30.0}
    assert [row.digest for row in scores.images(store, made.id)] == [store.blobs.put_bytes(b"png")]
    assert scores.measurements(store, base.id)[0].job_id == job.id
    sweep(store, strays_older_than_s=-1.0)
    assert store.blobs.exists(plan)
    assert done.to_json()["depends_on"] == []


def test_completion_is_all_or_nothing(store: Store) -> None:
    base = model(store, "base")
    job = running_job(store, parent=base.id)
    bad = NewScores(PROTOCOL, "exam", {"psnr_db": 30.0})
    with pytest.raises(StoreError, match="split"):
        jobs.complete(store, job, model=new_model(store, "half", (base.id,)), scores=[bad])
    assert [row.name for row in list_models(store)] == ["base"]
    assert jobs.get_job(store, job).state == "running"


def test_the_same_model_from_two_jobs_is_one(store: Store) -> None:
    base = model(store, "base")
    first = running_job(store, parent=base.id)
    second = running_job(store, parent=base.id)
    made = jobs.complete(store, first, model=new_model(store, "half", (base.id,)))
    linked = jobs.complete(store, second, model=new_model(store, "half", (base.id,)))
    assert linked.state == "done"
    assert linked.model_id == made.model_id
    assert len(list_models(store)) == 2
    assert get_model(store, str(linked.model_id)).job_id == first.id


def test_interactive_jobs_go_first_then_by_age(store: Store) -> None:
    old = jobs.submit(store, "retrain", {}, device="cpu")
    new = jobs.submit(store, "prune", {}, device="cpu")
    quick = jobs.submit(store, "evaluate", {}, device="cpu", interactive=True)
    order = [claimed.id for claimed in (jobs.claim(store, "cpu", "w") for _ in range(3)) if claimed]
    assert order == [quick.id, old.id, new.id]


def test_a_chain_waits_for_its_parent_and_takes_its_model(store: Store) -> None:
    base = model(store, "base")
    prune = jobs.submit(store, "prune", {}, parent=base.id, device="cpu", name="prune it")
    retrain = jobs.submit(store, "retrain", {}, parent={"job": prune.id}, device="cpu")
    evaluate = jobs.submit(store, "evaluate", {}, parent={"job": retrain.id}, device="cpu")
    benchmark = jobs.submit(store, "benchmark", {}, parent={"job": evaluate.id}, device="cpu", depends_on=[retrain.id])
    assert retrain.state == evaluate.state == benchmark.state == "blocked"
    assert "prune it" in retrain.message
    assert benchmark.depends_on == tuple(sorted([evaluate.id, retrain.id]))
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None and claimed.id == prune.id
    half = jobs.complete(store, claimed, model=new_model(store, "half", (base.id,)))
    assert jobs.get_job(store, retrain).state == "queued"
    assert jobs.get_job(store, evaluate).state == "blocked"
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None and claimed.parent_model_id == half.model_id
    trained = jobs.complete(store, claimed, model=new_model(store, "trained", (str(half.model_id),)))
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None and claimed.id == evaluate.id and claimed.parent_model_id == trained.model_id
    jobs.complete(store, claimed, scores=[NewScores(PROTOCOL, "test", {"psnr_db": 1.0})])
    assert scores.scores(store, str(trained.model_id)) == {"psnr_db": 1.0}
    # A job that made no model stands for the one that it worked on.
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None and claimed.id == benchmark.id and claimed.parent_model_id == trained.model_id
    late = jobs.submit(store, "evaluate", {}, parent={"job": retrain.id}, device="cpu")
    assert late.state == "queued"


def test_a_failed_parent_blocks_the_rest_with_the_reason(store: Store) -> None:
    prune = running_job(store, "prune", name="prune it")
    retrain = jobs.submit(store, "retrain", {}, parent={"job": prune.id}, device="cpu")
    evaluate = jobs.submit(store, "evaluate", {}, parent={"job": retrain.id}, device="cpu")
    failed = jobs.fail(store, prune, ERROR, "Traceback ...")
    assert failed.state == "failed"
    assert failed.error == {**ERROR, "traceback": "Traceback ..."}
    for waiting in (retrain, evaluate):
        row = jobs.get_job(store, waiting)
        assert row.state == "blocked"
        assert "prune it" in row.message and "no images" in row.message
    assert "failed" in jobs.submit(store, "benchmark", {}, parent={"job": evaluate.id}, device="cpu").message
    again = jobs.resume(store, prune)
    assert (again.state, again.attempt, again.error) == ("queued", 2, None)
    assert "failed" not in jobs.get_job(store, evaluate).message
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None
    jobs.complete(store, claimed)
    assert jobs.get_job(store, retrain).state == "queued"
    jobs.request(store, retrain, "cancel")
    assert "cancelled" in jobs.get_job(store, evaluate).message


def test_pause_and_resume_while_the_child_is_there(store: Store) -> None:
    job = running_job(store)
    assert jobs.read_control(store, job) == "run"
    assert jobs.request(store, job.id, "pause").state == "pausing"
    assert jobs.read_control(store, job) == "pause"
    assert jobs.request(store, job.id, "pause").state == "pausing"
    assert jobs.paused(store, job).state == "paused"
    resumed = jobs.request(store, job, "resume")
    assert (resumed.state, resumed.attempt) == ("running", 1)
    assert jobs.read_control(store, job) == "run"
    assert not jobs.release(store, job)


def test_a_resume_before_the_checkpoint_is_written_is_not_lost(store: Store) -> None:
    job = running_job(store)
    jobs.request(store, job, "pause")
    jobs.request(store, job, "resume")
    assert jobs.paused(store, job).state == "running"


def test_a_paused_child_leaves_the_device_and_is_queued_by_resume(store: Store) -> None:
    job = running_job(store)
    jobs.request(store, job, "pause")
    jobs.paused(store, job)
    assert jobs.release(store, job)
    left = jobs.get_job(store, job)
    assert (left.state, left.pid) == ("paused", None)
    resumed = jobs.resume(store, job)
    assert (resumed.state, resumed.attempt) == ("queued", 2)
    with pytest.raises(StoreError) as caught:
        jobs.complete(store, job)  # the old child, still alive
    assert caught.value.code == "stale_attempt"


def test_cancel_in_every_state(store: Store) -> None:
    queued = jobs.submit(store, "prune", {}, device="cuda")
    assert jobs.request(store, queued, "cancel").state == "cancelled"
    starting = jobs.submit(store, "prune", {}, device="cpu")
    jobs.claim(store, "cpu", "w")
    assert jobs.request(store, starting, "cancel").state == "cancelling"
    assert jobs.set_running(store, starting, 5, 5.0).state == "cancelling"
    assert jobs.cancelled(store, starting).state == "cancelled"
    job = running_job(store)
    jobs.request(store, job, "pause")
    jobs.paused(store, job)
    assert jobs.request(store, job, "cancel").state == "cancelling"
    assert jobs.read_control(store, job) == "cancel"
    jobs.cancelled(store, job)
    assert jobs.resume(store, job).state == "queued"


def test_a_queued_job_can_wait(store: Store) -> None:
    job = jobs.submit(store, "prune", {}, device="cpu")
    assert jobs.request(store, job, "pause").state == "paused"
    assert jobs.claim(store, "cpu", "w") is None
    resumed = jobs.resume(store, job)
    assert (resumed.state, resumed.attempt) == ("queued", 1)


def test_a_checkpoint_is_asked_for_once(store: Store) -> None:
    job = running_job(store)
    assert jobs.request(store, job, "checkpoint").state == "running"
    assert jobs.read_control(store, job) == "checkpoint"
    jobs.acknowledge(store, job, "checkpoint")
    assert jobs.read_control(store, job) == "run"
    jobs.request(store, job, "cancel")
    jobs.acknowledge(store, job, "checkpoint")
    assert jobs.read_control(store, job) == "cancel"


@pytest.mark.parametrize("control", ["pause", "resume", "cancel", "checkpoint", "explode"])
def test_what_cannot_be_asked_says_what_can(store: Store, control: str) -> None:
    job = running_job(store)
    jobs.complete(store, job)
    with pytest.raises(StoreError) as caught:
        jobs.request(store, job, control)
    assert caught.value.given == control
    assert caught.value.legal == (["pause", "resume", "cancel", "checkpoint"] if control == "explode" else [])


def test_legal_controls_are_those_that_work(store: Store) -> None:
    for state in jobs.STATES:
        for control in legal_controls(state):
            job = running_job(store)
            pid = None if state in ("queued", "blocked", "failed", "cancelled") else 4242
            with store.write() as session:
                session.connection().exec_driver_sql("UPDATE job SET state=?, pid=? WHERE id=?", (state, pid, job.id))
            moved = jobs.request(store, job, control)
            assert moved.state != state or control == "checkpoint"
            with store.write() as session:
                session.connection().exec_driver_sql("UPDATE job SET state='done', pid=NULL WHERE id=?", (job.id,))


def test_unknown_jobs(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        jobs.get_job(store, "j_0123456789")
    assert caught.value.code == "unknown_job"
    first, _ = jobs.submit(store, "prune", {}, device="cpu"), jobs.submit(store, "prune", {}, device="cpu")
    with pytest.raises(StoreError) as caught:
        jobs.get_job(store, first.id[:8])
    assert caught.value.code == "ambiguous"
    assert first.id in caught.value.legal
    with pytest.raises(StoreError):
        jobs.submit(store, "prune", {}, parent={"model": "x"}, device="cpu")
    with pytest.raises(StoreError, match="state"):
        jobs.list_jobs(store, ["asleep"])
    with pytest.raises(StoreError):
        jobs.read_control(store, "j_none")
    assert [row.state for row in jobs.list_jobs(store, ["queued"], device="cpu")] == ["queued", "queued"]
    assert jobs.list_jobs(store, limit=1)[0].id > first.id


def test_the_jobs_of_a_dead_worker_are_put_back_three_times(store: Store) -> None:
    job = running_job(store)
    elsewhere = jobs.submit(store, "prune", {}, device="cuda")
    for death in range(1, MAX_REQUEUES + 1):
        assert [row.pid for row in jobs.orphans(store, "cpu")] == [4242]
        (moved,) = jobs.requeue_orphans(store, "cpu")
        assert (moved.state, moved.attempt, moved.requeues, moved.pid) == ("queued", death + 1, death, None)
        claimed = jobs.claim(store, "cpu", "w")
        assert claimed is not None
        jobs.set_running(store, claimed, 4242, 1000.0)
    (moved,) = jobs.requeue_orphans(store, "cpu")
    assert moved.state == "failed"
    assert moved.error is not None and moved.error["code"] == "worker_died"
    assert moved.message == moved.error["message"]
    assert jobs.resume(store, job).requeues == 0
    assert jobs.get_job(store, elsewhere).state == "queued"


@pytest.mark.parametrize(("control", "after"), [("pause", "paused"), ("cancel", "cancelled")])
def test_an_orphan_ends_where_it_was_going(store: Store, control: str, after: str) -> None:
    job = running_job(store)
    jobs.request(store, job, control)
    (moved,) = jobs.requeue_orphans(store, "cpu")
    assert (moved.state, moved.pid) == (after, None)
    assert jobs.requeue_orphans(store, "cpu") == []


def test_many_threads_claim_each_job_once(store: Store) -> None:
    wanted = {jobs.submit(store, "prune", {"n": number}, device="cpu").id for number in range(12)}
    claimed: list[str] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while (job := jobs.claim(store, "cpu", "w")) is not None:
                claimed.append(job.id)
                jobs.set_progress(store, job, 0.5, "half")
                jobs.list_jobs(store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(claimed) == sorted(wanted)


def test_readers_see_a_commit_of_another_process_at_once(store: Store) -> None:
    other = open_store(store.root)
    job = jobs.submit(other, "prune", {}, device="cpu")
    assert jobs.get_job(store, job.id).id == job.id
    with store.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM job").scalar() == 1
    other.close()


def test_one_worker_a_device(store: Store) -> None:
    assert not jobs.worker_alive(store, "cuda:0")
    assert jobs.get_worker(store, "cuda:0") is None
    code = (
        "import sys, time\nfrom store import open_store, jobs\nstore = open_store(sys.argv[1])\n"
        "lock = jobs.lock_worker(store, 'cuda:0')\njobs.register_worker(store, 'cuda:0', 123, 4.5)\n"
        "sys.stdout.write('held\\n'); sys.stdout.flush()\nsys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "held\n"
        assert jobs.worker_alive(store, "cuda:0")
        with pytest.raises(StoreError) as caught:
            jobs.lock_worker(store, "cuda:0")
        assert caught.value.code == "worker_exists"
        assert "123" in caught.value.message
        with jobs.lock_worker(store, "cpu") as lock:
            assert lock.path.name == "worker-cpu.lock"
    finally:
        worker.kill()
        worker.communicate()
    assert not jobs.worker_alive(store, "cuda:0")
    with jobs.lock_worker(store, "cuda:0"):
        pass


def test_a_step_to_pause_at_stands_until_it_is_reached_or_something_else_is_asked(store: Store) -> None:
    job = jobs.submit(store, "retrain", {}, device="cpu")
    assert jobs.run_until(store, job, 120).pause_step == 120
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None and claimed.pause_step == 120
    jobs.set_running(store, claimed, 4242, 1000.0)
    assert jobs.read_request(store, job) == ("run", 120)
    jobs.request(store, job, "checkpoint")
    assert jobs.read_request(store, job) == ("checkpoint", 120)
    jobs.acknowledge(store, job, "checkpoint")
    assert jobs.read_request(store, job) == ("run", 120)
    # The worker dies: the job is queued again, and still pauses there.
    assert jobs.requeue_orphans(store, "cpu")[0].pause_step == 120
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None
    jobs.set_running(store, claimed, 4242, 1000.0)
    assert jobs.reached(store, claimed) and jobs.read_request(store, job) == ("pause", None)
    assert not jobs.reached(store, claimed) and jobs.paused(store, claimed).state == "paused"
    assert jobs.release(store, claimed)
    assert jobs.run_until(store, job, 130).state == "queued"
    assert jobs.request(store, job, "pause").pause_step is None
    assert jobs.resume(store, job).pause_step is None


def test_a_job_may_be_queued_with_the_step_to_pause_at(store: Store) -> None:
    """From its first moment on: a worker that claims it at once knows."""
    job = jobs.submit(store, "retrain", {}, device="cpu", pause_step=3)
    assert job.pause_step == 3 and jobs.submit(store, "retrain", {}, device="cpu").pause_step is None
    claimed = jobs.claim(store, "cpu", "w")
    assert claimed is not None and claimed.id == job.id and jobs.read_request(store, job) == ("run", 3)


def test_a_done_job_cannot_run_on(store: Store) -> None:
    job = running_job(store)
    jobs.complete(store, job)
    with pytest.raises(StoreError, match="done"):
        jobs.run_until(store, job, 5)
