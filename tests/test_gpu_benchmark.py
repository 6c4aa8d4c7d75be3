"""`make gpu` where there is no GPU: refused; and each of its parts runs, on the CPU and a tiny model in place of a GPU and a large one."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import gpu, trained_and_pruned
from tests.conftest import stop_workers


def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results.json")
    with pytest.raises(SystemExit, match="needs a CUDA device; none was found. Nothing was measured"):
        gpu.main()
    assert not gpu.RESULTS.exists()


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1)
    monkeypatch.setattr(torch, "compile", lambda call: call)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)
    monkeypatch.setattr(gpu, "PRODUCTS", ((64, 128, 8),))
    monkeypatch.setattr(gpu.median_ms, "__defaults__", (1, 0))


def test_every_part_runs(on_cpu):
    found = gpu.shape("tiny", 32, 2)
    assert set(found["decode_speed_up"]) == {"dense", *gpu.PRUNINGS} and found["decode_speed_up"]["dense"] == 1
    assert {f"cut_error_{rate}" for rate in (0.3, 0.5, 0.7, 0.8)} <= set(found)
    ways = gpu.compiled("tiny", 64)
    assert set(ways) == {f"{way}, {form}" for way in ("eager", "compiled") for form in gpu.FORMATS}
    assert all(set(times["speed_up"]) == {"dense", *gpu.COMPILED} for times in ways.values())
    sparse = gpu.sparse_model("tiny", 64)
    assert sparse["layers"] == 4 and all(sparse[form]["speed_up"] > 0 for form in gpu.FORMATS)
    assert set(gpu.sparse_products()) == {"8 x 128 -> 64"}
    assert set(gpu.training("tiny", 32, steps=2)["steps_per_s"]) == {"float32", "bfloat16"}


def test_a_part_that_fails_loses_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results.json")
    results = {"device": "none"}
    assert gpu.measure({"first": lambda: {"ms": 1.0}, "second": lambda: {}["no"], "third": lambda: {"ms": 3.0}}, results) == [
        "second"
    ]
    written = json.loads(gpu.RESULTS.read_text())
    assert written == results and written["first"]["ms"] == 1.0 and written["third"]["ms"] == 3.0
    assert written["second"]["failed"] == "KeyError: 'no'" and all(written[part]["seconds"] >= 0 for part in ("first", "second"))


@pytest.mark.slow
def test_a_model_is_trained_pruned_and_told_of(monkeypatch, tmp_path, data_dir):
    home, said = tmp_path / "home", []
    for name, value in {"DATA_DIR": data_dir, "NUM_THREADS": 1, "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"OFFSHOOT_{name}", str(value))
    asked = "--variant tiny --minutes 0.1 --batch-size 4 --image-size 32 --speed 1.5 --home"
    monkeypatch.setattr(sys, "argv", ["trained_and_pruned", *asked.split(), str(home)])
    monkeypatch.setattr(trained_and_pruned, "write_section", lambda title, lines: said.append((title, lines)))
    try:
        trained_and_pruned.main()
    finally:
        stop_workers(home)
    ((title, lines),) = said
    rows = [line for line in lines if line.startswith("| ")]
    assert title == "Trained from scratch, pruned, retrained (cpu)" and len(rows) == 5
    assert " steps in " in rows[2] and "(100.0%)" in rows[2] and "(x1.00)" in rows[2]
    assert all(row.count("|") == rows[0].count("|") for row in rows)
