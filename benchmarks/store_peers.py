"""What trackers that users would pick instead take for the same: run by the interpreter of a virtual environment of theirs.

`PYTHON benchmarks/store_peers.py NAME FOLDER STEPS POINTS RUNS` prints one JSON object: microseconds a point of logging STEPS steps of
ten metrics, milliseconds of reading one series of POINTS points, and of listing RUNS runs with the last value of ten metrics. It
imports nothing of ours, since it does not run in our environment; `benchmarks.store_speed` starts it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

KEYS = [f"metric_{number}" for number in range(10)]


def row(step: int) -> dict[str, float]:
    """Ten metrics of a step."""
    return {key: float(step + number) for number, key in enumerate(KEYS)}


def best_ms(call: Callable[[], Any], repeats: int = 3) -> float:
    """Least milliseconds of a few calls."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found) * 1e3


def mlflow(folder: str, steps: int, points: int, runs: int) -> dict[str, float]:
    """Its SQLite backend; series and runs are filled by `log_batch`."""
    import mlflow
    from mlflow.entities import Metric

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    client = mlflow.MlflowClient()
    # Artifacts would go to the folder that this was started in.
    experiment = client.create_experiment("speed", artifact_location=f"file://{folder}/artifacts")
    run = mlflow.start_run(experiment_id=experiment)
    started = time.perf_counter()
    for step in range(steps):
        mlflow.log_metrics(row(step), step=step)
    logging_s = time.perf_counter() - started
    for start in range(0, points, 1000):
        client.log_batch(run.info.run_id, [Metric("series", float(n), 0, n) for n in range(start, min(points, start + 1000))])
    for number in range(runs - 1):
        made = client.create_run(experiment)
        client.log_batch(made.info.run_id, [Metric(key, value, 0, 0) for key, value in row(number).items()])
    series_ms = best_ms(lambda: _all(len(client.get_metric_history(run.info.run_id, "series")), points))
    listed = best_ms(lambda: _all(len([r.data.metrics for r in client.search_runs([experiment], max_results=runs)]), runs))
    mlflow.end_run()
    return {"log_us": logging_s / steps / len(KEYS) * 1e6, "series_ms": series_ms, "runs_ms": listed}


def trackio(folder: str, steps: int, points: int, runs: int) -> dict[str, float]:
    """Its store directly, as its own server does: no server is started; a logged step is on disk within half a second, not at once."""
    os.environ["TRACKIO_DIR"] = folder
    from trackio.sqlite_storage import SQLiteStorage as Storage

    started = time.perf_counter()
    # The client sends what half a second has gathered; here that is a hundred steps.
    for start in range(0, steps, 100):
        part = range(start, min(steps, start + 100))
        Storage.bulk_log("speed", "logged", [row(step) for step in part], steps=list(part))
    logging_s = time.perf_counter() - started
    Storage.bulk_log("speed", "series", [{"series": float(step)} for step in range(points)], steps=list(range(points)))
    for number in range(runs):
        Storage.bulk_log("listed", f"run {number}", [row(number)], steps=[0])
    series_ms = best_ms(lambda: _all(len([log["series"] for log in Storage.get_logs("speed", "series")]), points))
    listed = best_ms(lambda: _all(len([Storage.get_logs("listed", run)[-1] for run in Storage.get_runs("listed")]), runs))
    return {"log_us": logging_s / steps / len(KEYS) * 1e6, "series_ms": series_ms, "runs_ms": listed}


def aim(folder: str, steps: int, points: int, runs: int) -> dict[str, float | None]:
    """Its local repository, without system metrics. Runs that it lists only after an index of its own are no figure."""
    from aim import Repo, Run

    repo = Repo(folder, init=True)
    run = Run(repo=repo, system_tracking_interval=None, log_system_params=False)
    started = time.perf_counter()
    for step in range(steps):
        run.track(row(step), step=step)
    logging_s = time.perf_counter() - started
    for step in range(points):
        run.track(float(step), name="series", step=step)
    series_ms = best_ms(lambda: _all(len(next(m for m in run.metrics() if m.name == "series").values.sparse_list()[0]), points))
    run.close()
    for number in range(runs - 1):
        other = Run(repo=repo, system_tracking_interval=None, log_system_params=False)
        other.track(row(number), step=0)
        other.close()

    def listed() -> list[Any]:
        return [[list(m.values.last()) for m in found.metrics()] for found in repo.iter_runs()]

    whole = len(listed()) == runs
    return {"log_us": logging_s / steps / len(KEYS) * 1e6, "series_ms": series_ms, "runs_ms": best_ms(listed) if whole else None}


def _all(found: int, wanted: int) -> None:
    if found != wanted:
        sys.exit(f"{found} were read, not {wanted}")


def main() -> None:
    name, folder, steps, points, runs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    found = {"mlflow": mlflow, "trackio": trackio, "aim": aim}[name](folder, steps, points, runs)
    found_text = json.dumps({"version": importlib.metadata.version(name), **found})
    sys.stdout.write(f"\n{found_text}\n")


if __name__ == "__main__":
    main()
