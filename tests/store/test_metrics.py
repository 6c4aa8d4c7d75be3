from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import MetricWriter, Store, StoreError, jobs, metrics
from store.metrics import pack, unpack
from tests.store.builders import running_job


@given(st.lists(st.floats()))
def test_packing_keeps_every_bit(values: list[float]) -> None:
    assert list(map(repr, unpack(pack(values)))) == list(map(repr, values))
    assert pack([1.0]) == b"\x00\x00\x00\x00\x00\x00\xf0\x3f"


def test_what_is_logged_is_read_back(store: Store) -> None:
    job = running_job(store)
    with MetricWriter(store, job.id) as writer:
        for step in range(1, 6):
            writer.log(step, {"loss": 1.0 / step, "lr": 1e-4})
            if step % 2 == 0:
                writer.log(step, {"val_psnr_db": 20.0 + step})  # adds to the step
        writer.log(3, {"note": 7.0})  # an earlier step, later
    assert metrics.series(store, job.id, "loss") == ([1, 2, 3, 4, 5], [1.0, 0.5, 1 / 3, 0.25, 0.2])
    assert metrics.series(store, job.id, "val_psnr_db") == ([2, 4], [22.0, 24.0])
    assert metrics.series(store, job.id, "note") == ([3], [7.0])
    assert metrics.series(store, job.id, "loss", after_step=3) == ([4, 5], [0.25, 0.2])
    assert metrics.series(store, job.id, "none") == ([], [])
    assert set(metrics.keys(store, job.id)) == {"loss", "lr", "val_psnr_db", "note"}
    assert metrics.latest(store, [job.id, "j_none"]) == {
        job.id: {"step": 5, "loss": 0.2, "lr": 1e-4, "val_psnr_db": 24.0, "note": 7.0}
    }


def test_not_a_number_survives(store: Store) -> None:
    job = running_job(store)
    with MetricWriter(store, job.id) as writer:
        writer.log(1, {"loss": float("nan"), "grad_norm": float("inf")})
        writer.log(2, {})
    assert math.isnan(metrics.series(store, job.id, "loss")[1][0])
    assert metrics.series(store, job.id, "grad_norm")[1] == [float("inf")]


def test_a_later_attempt_rewrites_and_an_earlier_one_cannot(store: Store) -> None:
    job = running_job(store)
    first = MetricWriter(store, job.id, 1)
    for step in range(1, 11):
        first.log(step, {"loss": 1.0, "old": 2.0})
    second = MetricWriter(store, job.id, 2, resume_from=5)
    assert metrics.series(store, job.id, "loss")[0] == [1, 2, 3, 4, 5]
    assert metrics.latest(store, [job.id])[job.id]["old"] == 2.0
    for step in range(5, 8):
        second.log(step, {"loss": 3.0})
    first.log(7, {"loss": 9.0})
    assert metrics.series(store, job.id, "loss") == ([1, 2, 3, 4, 5, 6, 7], [1.0] * 4 + [3.0] * 3)
    assert metrics.latest(store, [job.id])[job.id] == {"step": 7, "loss": 3.0, "old": 2.0}
    first.close()
    second.close()


def test_thinning_keeps_peaks_and_ends(store: Store) -> None:
    job = running_job(store)
    with MetricWriter(store, job.id) as writer:
        for step in range(400):
            writer.log(step, {"loss": 100.0 if step == 123 else -5.0 if step == 321 else math.sin(step)})
    steps, values = metrics.series(store, job.id, "loss", max_points=50)
    assert len(steps) == len(values) <= 50
    assert {0, 123, 321, 399} <= set(steps)
    assert steps == sorted(steps)


@pytest.mark.parametrize("values", [{"step": 1.0}, {"": 1.0}, {"loss": "low"}, {"loss": None}])
def test_what_is_no_metric_is_refused(store: Store, values: dict[str, float]) -> None:
    job = running_job(store)
    with MetricWriter(store, job.id) as writer:
        with pytest.raises(StoreError):
            writer.log(1, values)
        writer.log(2, {"loss": 1.0})
    assert metrics.series(store, job.id, "loss") == ([2], [1.0])
    with pytest.raises(StoreError) as caught:
        MetricWriter(store, "j_none")
    assert caught.value.code == "unknown_job"


def test_two_threads_may_log(store: Store) -> None:
    job = running_job(store)
    with MetricWriter(store, job.id) as writer:

        def log(key: str) -> None:
            for step in range(50):
                writer.log(step, {key: float(step)})

        threads = [threading.Thread(target=log, args=(key,)) for key in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for key in ("a", "b"):
        assert metrics.series(store, job.id, key) == (list(range(50)), [float(step) for step in range(50)])


_LOGGER = """
import sys
from store import MetricWriter, open_store
writer = MetricWriter(open_store(sys.argv[1]), sys.argv[2])
step = 0
while True:
    step += 1
    writer.log(step, {f"metric_{number}": step + number for number in range(10)})
    sys.stdout.write(f"{step}\\n")
    sys.stdout.flush()
"""


def test_kill_9_loses_no_committed_point(store: Store) -> None:
    job = running_job(store)
    child = subprocess.Popen(
        [sys.executable, "-c", _LOGGER, str(store.root), job.id],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    seen = child.stdout.readline()
    time.sleep(0.5)
    os.kill(child.pid, signal.SIGKILL)
    told = [seen, *child.communicate()[0].splitlines(keepends=True)]
    # The last line may be cut off; each whole line was written after its step had been committed.
    last = max(int(line) for line in told if line.endswith("\n"))
    assert last > 20
    for key in ("metric_0", "metric_9"):
        steps, values = metrics.series(store, job.id, key)
        assert steps[:last] == list(range(1, last + 1))
        assert values[:last] == [step + int(key[-1]) for step in range(1, last + 1)]
        assert len(steps) in (last, last + 1)
    assert metrics.latest(store, [job.id])[job.id]["step"] >= last
    jobs.heartbeat(store, job)  # and nothing stays locked


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.dictionaries(st.sampled_from(["loss", "lr", "psnr"]), st.floats(-5, 5), min_size=1),
            st.booleans(),
        ),
        max_size=60,
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_values_are_never_behind_what_was_logged(store: Store, calls) -> None:
    """`latest` is written at some steps only; whoever reads it sees every step, with or without a close between them."""
    job = running_job(store)
    writer = MetricWriter(store, job.id)
    wanted: dict[str, float] = {}
    step = -1
    for ahead, values, reopen in calls:
        step += ahead
        writer.log(step, values)
        wanted = {**wanted, **values, "step": step}
        assert metrics.latest(store, [job.id]) == {job.id: wanted}
        if reopen:
            writer.close()
            writer = MetricWriter(store, job.id)
            assert metrics.latest(store, [job.id]) == {job.id: wanted}
            step += 1
    writer.close()


def test_a_killed_writer_leaves_no_value_behind(store: Store) -> None:
    """A writer that never closed: the next attempt takes over all keys, and drops what comes after its checkpoint."""
    job = running_job(store)
    first = MetricWriter(store, job.id, 1)
    for step in range(1, 11):
        first.log(step, {"loss": float(step), "old": 1.0})
    second = MetricWriter(store, job.id, 2, resume_from=5)
    assert metrics.latest(store, [job.id])[job.id]["step"] <= 5
    second.log(6, {"loss": 60.0})
    assert metrics.latest(store, [job.id])[job.id] == {"step": 6, "loss": 60.0, "old": 1.0}
    first.log(11, {"loss": -1.0})
    first.close()
    assert metrics.latest(store, [job.id])[job.id] == {"step": 6, "loss": 60.0, "old": 1.0}
    second.close()
