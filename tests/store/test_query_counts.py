"""What pages do each second must stay cheap: the number of queries does not grow with the store. Times are in `benchmarks.store_speed`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from store import MetricWriter, Store, get_model, jobs, list_models, metrics
from store.ancestry import add_model_in
from tests.store.builders import new_model, running_job


def fill(store: Store, num_models: int, num_jobs: int) -> None:
    ids: list[str] = []
    with store.write() as session:
        for number in range(num_models):
            parents = (ids[(number - 1) // 2],) if ids else ()
            layout = {"kept": {f"site {site}": list(range(60)) for site in range(10)}}
            ids.append(add_model_in(store, session, new_model(store, f"model {number}", parents, layout=layout)))
    for number in range(num_jobs):
        jobs.submit(store, "prune", {"rate": 0.5, "number": number}, device="cuda")


@pytest.fixture
def queries(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], int]:
    """How many queries a call makes."""
    count = 0
    rows = Store.rows

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return rows(*arguments, **options)

    monkeypatch.setattr(Store, "rows", counted)

    def measure(call: Callable[[], Any]) -> int:
        before = count
        call()
        return count - before

    return measure


def test_lists_take_as_many_queries_at_300_models_as_at_3(store: Store, queries) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "models": lambda: list_models(store),
        "model": lambda: get_model(store, "model 1"),
        "jobs": lambda: jobs.list_jobs(store),
    }
    fill(store, 3, 2)
    few = {name: queries(call) for name, call in calls.items()}
    fill(store, 0, 120)
    with store.write() as session:
        for number in range(300):
            add_model_in(store, session, new_model(store, f"more {number}"))
    assert len(list_models(store)) == 303 and len(jobs.list_jobs(store)) == 122
    assert {name: queries(call) for name, call in calls.items()} == few
    assert all(1 <= number <= 10 for number in few.values())


def test_a_step_of_ten_metrics_is_one_row(store: Store) -> None:
    job = running_job(store)
    with MetricWriter(store, job.id) as writer:
        for step in range(50):
            writer.log(step, {f"metric_{number}": float(step * number) for number in range(10)})
    assert store.rows("SELECT count(*) FROM metric WHERE job=?", (job.id,)) == [(50,)]
    assert list(metrics.series(store, job.id, "metric_3")[1]) == [step * 3.0 for step in range(50)]
