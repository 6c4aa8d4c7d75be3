"""What the store's own paths cost, beside plain sqlite3 and beside trackers that users would pick instead.

Logging alternates in blocks with plain sqlite3 (one row a metric, primary key (job, key, step) without rowid, a transaction a step,
the same journal and synchronous modes), and the ratio of each pair counts. Trackers run in the virtual environment that `--peers`
names, one after the other in the same run; those that are not installed there are named as absent.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import store.jobs as jobs
from benchmarks.store_writers import KEYS, log_for_ever, row, write_cold
from core.model_manager import ModelManager
from store import MetricWriter, get_model, list_models, metrics, open_store, verify
from tests.many_models import fill

PEERS = ("mlflow", "trackio", "aim")
PLAIN = "CREATE TABLE metric (job TEXT, key TEXT, step INTEGER, value REAL, PRIMARY KEY (job, key, step)) WITHOUT ROWID"
BLOCK = 200
"""Steps of a block of logging."""


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def best_ms(call: Callable[[], Any], repeats: int = 7) -> float:
    """Least milliseconds of a few calls."""
    return min(seconds(call) for _ in range(repeats)) * 1e3


def plain_database(path: Path) -> sqlite3.Connection:
    """What one writes by hand; durable like the store's."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(PLAIN)
    return connection


def plain_log(connection: sqlite3.Connection, job: str, step: int, values: dict[str, float]) -> None:
    """One row a metric, one transaction a step."""
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO metric VALUES (?, ?, ?, ?)", [(job, key, step, value) for key, value in values.items()])
    connection.execute("COMMIT")


def logging_cost(folder: Path, pairs: int) -> tuple[list[float], list[float]]:
    """Microseconds a point of each block: ours, and plain sqlite3's."""
    store, plain = open_store(folder / "logging"), plain_database(folder / "plain.sqlite")
    job = jobs.submit(store, "retrain", {}, device="cpu").id
    ours: list[float] = []
    theirs: list[float] = []
    with MetricWriter(store, job) as writer:
        for pair in range(pairs + 1):  # the first is a warm-up
            steps = range(pair * BLOCK, (pair + 1) * BLOCK)
            blocks = [
                (ours, lambda steps=steps: [writer.log(step, row(step)) for step in steps]),
                (theirs, lambda steps=steps: [plain_log(plain, job, step, row(step)) for step in steps]),
            ]
            for found, block in blocks if pair % 2 == 0 else reversed(blocks):
                found.append(seconds(block) / BLOCK / len(KEYS) * 1e6)
    plain.close()
    store.close()
    return ours[1:], theirs[1:]


def series_cost(folder: Path, points: int) -> tuple[float, float]:
    """Milliseconds of reading one series of so many points as steps and values: ours, and plain sqlite3's."""
    store, plain = open_store(folder / "series"), plain_database(folder / "series.sqlite")
    job = jobs.submit(store, "retrain", {}, device="cpu").id
    with MetricWriter(store, job) as writer:
        for step in range(points):
            writer.log(step, row(step))
            plain_log(plain, job, step, row(step))

    def by_hand() -> tuple[list[int], list[float]]:
        found = plain.execute("SELECT step, value FROM metric WHERE job=? AND key=? ORDER BY step", (job, KEYS[3])).fetchall()
        return [step for step, _ in found], [value for _, value in found]

    assert metrics.series(store, job, KEYS[3]) == by_hand(), "both have every point"
    ours, theirs = math.inf, math.inf
    for _ in range(9):
        ours = min(ours, seconds(lambda: metrics.series(store, job, KEYS[3])))
        theirs = min(theirs, seconds(by_hand))
    plain.close()
    store.close()
    return ours * 1e3, theirs * 1e3


def processes() -> Any:
    """Children come from a server that has the store loaded, so that they start together and at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.store_writers", "core.model_manager", "tests.many_models"])
    return context


def kills(folder: Path, repeats: int, seed: int) -> tuple[int, int]:
    """(points told as logged, points lost of them) over so many writers killed with -9 at a random moment."""
    store, chance = open_store(folder / "kills"), random.Random(seed)
    context = processes()
    logged = lost = 0
    for _ in range(repeats):
        job = jobs.submit(store, "retrain", {}, device="cpu").id
        reading, writing = multiprocessing.Pipe(duplex=False)
        process = context.Process(target=log_for_ever, args=(str(store.root), job, writing))
        process.start()
        writing.close()
        last = int.from_bytes(os.read(reading.fileno(), 8), "little")
        killed_at = time.monotonic() + chance.uniform(0.01, 0.3)
        while data := os.read(reading.fileno(), 1 << 16):
            whole = len(data) // 8 * 8
            last = int.from_bytes(data[whole - 8 : whole], "little") if whole else last
            if time.monotonic() > killed_at and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
        process.join()
        reading.close()
        for number, key in enumerate(KEYS):
            steps, values = metrics.series(store, job, key)
            kept = {step: value for step, value in zip(steps, values, strict=True) if value == step + number}
            lost += sum(step not in kept for step in range(1, last + 1))
        logged += last * len(KEYS)
    store.close()
    return logged, lost


def cold_stores(folder: Path, repeats: int) -> int:
    """How many of so many cold stores were whole after two writers had opened each at the same moment."""
    context = processes()
    whole = 0
    for number in range(repeats):
        root = folder / f"cold {number}"
        together = context.Barrier(2)
        writers = [context.Process(target=write_cold, args=(str(root), name, together)) for name in "ab"]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        store = open_store(root)
        ended = all(writer.exitcode == 0 for writer in writers)
        whole += ended and len(list_models(store)) == 6 and verify(store) == []
        store.close()
    return whole


def thousand(folder: Path, count: int) -> list[tuple[str, float]]:
    """Milliseconds of what pages ask for, at `count` models, each made by a job with ten metrics."""
    home = folder / "thousand"
    manager = ModelManager(home)
    store = manager.store
    ids = fill(store, count)
    made_by = [jobs.submit(store, "retrain", {}, device="cpu") for _ in ids]
    for number, job in enumerate(made_by):
        with MetricWriter(store, job.id) as writer:
            writer.log(0, row(number))
            writer.log(1, row(number + 1))
    refs = [job.id for job in made_by]
    found = metrics.latest(store, refs)
    assert len(found) == count and found[refs[3]] == {"step": 1, **row(4)}
    control = best_ms(lambda: [jobs.read_control(store, made_by[3]) for _ in range(100)]) / 100
    rows = [
        ("the last value of ten metrics of each", best_ms(lambda: metrics.latest(store, refs))),
        ("`list_models`", best_ms(lambda: list_models(store))),
        ("`get_model` by name", best_ms(lambda: get_model(store, f"model {count // 2:05d}"))),
        ("`list_jobs`, the newest 200", best_ms(lambda: jobs.list_jobs(store))),
        ("`read_control`, what a step asks", control),
    ]
    store.close()
    return rows


def peers(
    interpreter: Path | None, folder: Path, steps: int, points: int, runs: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Figures of the trackers that are installed beside this interpreter, and the names of those that are not."""
    found: dict[str, dict[str, Any]] = {}
    absent: list[str] = []
    for name in PEERS:
        there = (
            interpreter is not None and not subprocess.run([interpreter, "-c", f"import {name}"], capture_output=True).returncode
        )
        if not there:
            absent.append(name)
            continue
        place = folder / name
        place.mkdir()
        command = [
            str(interpreter),
            str(Path(__file__).with_name("store_peers.py")),
            name,
            str(place),
            *map(str, (steps, points, runs)),
        ]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} did not come to its end:\n{done.stderr[-2000:]}")
        found[name] = json.loads(done.stdout.strip().splitlines()[-1])
    return found, absent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="Python of a virtual environment with mlflow, trackio or aim; never this one.")
    parser.add_argument("--pairs", type=int, default=30, help=f"Alternating blocks of {BLOCK} steps.")
    parser.add_argument("--points", type=int, default=10_000, help="Points of the series that is read.")
    parser.add_argument("--models", type=int, default=1000, help="Models and jobs of the lists.")
    parser.add_argument("--kills", type=int, default=20, help="Writers killed with -9.")
    parser.add_argument("--cold", type=int, default=50, help="Cold stores that two writers open at once.")
    given = parser.parse_args()
    from benchmarks.results import machine, table, write_section  # imports torch, which each child would wait for

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours, plain = logging_cost(folder, given.pairs)
        series_ms, plain_series_ms = series_cost(folder, given.points)
        lists = thousand(folder, given.models)
        logged, lost = kills(folder, given.kills, 0)
        whole = cold_stores(folder, given.cold)
        others, absent = peers(given.peers, folder, 500, given.points, given.models)
    ratios = sorted(mine / other for mine, other in zip(ours, plain, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    latest_ms = lists[0][1]
    us = partial("{:.1f}".format)
    rows = [
        ["Offshoot", us(statistics.median(ours)), us(series_ms), us(latest_ms)],
        ["plain sqlite3", us(statistics.median(plain)), us(plain_series_ms), "–"],
        *(
            [
                f"{name} {f['version']}",
                us(f["log_us"]),
                us(f["series_ms"]),
                us(f["runs_ms"]) if f["runs_ms"] is not None else "not listed",
            ]
            for name, f in others.items()
        ),
    ]
    lines = [
        f"`.venv/bin/python -m benchmarks.store_speed` on {machine()}. Logging: ten metrics a step, {given.pairs} alternating pairs of "
        f"blocks of {BLOCK} steps, wall-clock medians. Reading: the least of several. trackio gathers points for half a second "
        "before it writes them; all others are durable at each step.",
        "",
        *table(
            [
                "",
                "logging, us a point",
                f"one series of {given.points:,} points, ms",
                f"{given.models:,} runs with the last of ten, ms",
            ],
            rows,
        ),
        "",
        f"A durable step costs {statistics.median(ratios):.2f} x plain sqlite3's (middle half of the pairs: {low:.2f} to {high:.2f}); "
        f"a series {series_ms / plain_series_ms:.2f} x. {lost} of {logged:,} points were lost over {given.kills} writers killed with -9. "
        f"Two writers on a cold store: {whole} of {given.cold} whole.",
        *([f"Not there to be measured: {', '.join(absent)} (`--peers PYTHON`)."] if absent else []),
        "",
        *table([f"at {given.models:,} models", "ms"], [[name, f"{ms:.2f}"] for name, ms in lists]),
    ]
    write_section("The store", lines)


if __name__ == "__main__":
    main()
