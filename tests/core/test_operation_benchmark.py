"""Benchmark: several models in one measurement, warm and synchronised, figures as numbers with their units."""

from __future__ import annotations

import psutil
import pytest
import torch

import store as st
from core.errors import CoreError
from core.operations import benchmark
from dcaecore import DCAE, VARIANTS, ConfigError
from store import StoreError

FIELDS = {"image_size": 32, "repeats": 3, "warmup": 1}


@pytest.fixture(scope="module")
def rows(bench):
    base = bench.add()
    pruned = bench.run("prune", base.id, rate=0.5)
    return base.id, pruned.model_id, bench.add(seed=7, name="other").id


def test_one_measurement_holds_all_models_and_the_baseline(bench, rows):
    base, pruned, other = rows
    bench.run("benchmark", pruned, models=[other], **FIELDS)
    found = st.scores.measurements(bench.store, pruned)[0]
    assert set(found.models) == {base, pruned, other}
    assert found.device == "cpu" and found.dtype == "float32"
    assert found.settings["threads"] == torch.get_num_threads() and found.settings["repeats"] == 3
    assert found.settings["device_name"] and found.settings["torch"] == torch.__version__
    for figures in found.models.values():
        for what in ("encode", "decode", "both"):
            assert 0 < figures[f"{what}_ms"] <= figures[f"{what}_p95_ms"] <= figures[f"{what}_p99_ms"]
            assert figures[f"{what}_images_per_s"] == pytest.approx(1e3 / figures[f"{what}_ms"])
            assert figures[f"{what}_spread_ratio"] >= 0
        assert figures["process_memory_bytes"] > 1e7
        assert all(isinstance(value, float) for value in figures.values() if not isinstance(value, str))
    bench.run("benchmark", pruned, with_baseline=False, **FIELDS)
    assert set(st.scores.measurements(bench.store, pruned)[0].models) == {pruned}


# Failure 7: latency without warm-up or synchronisation.
def test_models_are_warmed_up_and_interleaved(monkeypatch):
    calls, timed = [], []

    class Fake:
        def __init__(self, name):
            self.name = name

        def encode(self, x):
            calls.append(f"{self.name}e")
            return x

        def decode(self, z):
            calls.append(f"{self.name}d")

    plain = benchmark.seconds

    def time_call(call, device):
        timed.append(device)
        return plain(call, device)

    monkeypatch.setattr(benchmark, "seconds", time_call)
    times = benchmark.measure({"a": Fake("a"), "b": Fake("b")}, torch.zeros(1), 3, 2)
    assert calls[:2] == ["ae", "be"]  # latents to decode
    rounds = [calls[i : i + 4] for i in range(2, len(calls), 4)]
    assert len(rounds) == 5 and all(sorted(r) == ["ad", "ae", "bd", "be"] for r in rounds)
    assert {r[0] for r in rounds} == {"ae", "be"}
    assert all(len(values) == 3 for model in times.values() for values in model.values())
    assert len(timed) == 20


def test_a_gpus_clock_is_read_after_it_has_finished(monkeypatch):
    order = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: order.append("wait"))
    benchmark.seconds(lambda: order.append("work"), torch.device("cuda:0"))
    assert order == ["wait", "work", "wait"]


def test_figures_are_of_the_repeats():
    values = [0.010 + 0.001 * i for i in range(11)]
    found = benchmark.figures({"encode": values, "decode": values}, batch_size=4)
    assert found["encode_ms"] == pytest.approx(15) and found["both_ms"] == pytest.approx(30)
    assert found["encode_p95_ms"] == pytest.approx(19.5) and found["encode_p99_ms"] == pytest.approx(19.9)
    assert found["encode_spread_ratio"] == pytest.approx(5 / 15)
    assert found["both_images_per_s"] == pytest.approx(4 / 0.030)


def test_peak_memory_is_of_this_models_pass():
    """Where the peak cannot start anew (no Linux, or a container that forbids it) what the process holds now is told instead."""
    model = DCAE(VARIANTS["tiny"]).eval()
    hog = torch.ones(50_000_000)
    before = benchmark._peak_rss() if benchmark._reset_peak_rss() else psutil.Process().memory_info().rss
    assert before > hog.numel() * 4
    del hog
    after = benchmark.memory(model, torch.zeros(1, 3, 32, 32))["process_memory_bytes"]
    assert 0 < after < before


def test_memory_is_told_where_the_peak_cannot_start_anew(monkeypatch):
    monkeypatch.setattr(benchmark, "_reset_peak_rss", lambda: False)
    found = benchmark.memory(DCAE(VARIANTS["tiny"]).eval(), torch.zeros(1, 3, 32, 32))["process_memory_bytes"]
    assert found == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


def test_bfloat16_and_batches(bench, rows):
    bench.run("benchmark", rows[0], dtype="bfloat16", batch_size=2, **FIELDS)
    found = st.scores.measurements(bench.store, rows[0])[0]
    assert found.dtype == "bfloat16" and found.settings["batch_size"] == 2
    figures = found.models[rows[0]]
    assert figures["decode_images_per_s"] == pytest.approx(2e3 / figures["decode_ms"])


def test_what_cannot_be_is_refused(bench, rows):
    with pytest.raises(CoreError, match="needs a model"):
        bench.run("benchmark", **FIELDS)
    with pytest.raises(StoreError, match="m_ffffffff"):
        bench.run("benchmark", rows[0], models=["m_ffffffff"], **FIELDS)
    with pytest.raises(ConfigError):
        bench.run("benchmark", rows[0], **{**FIELDS, "image_size": 36})


def test_a_cancel_is_answered_between_repeats(bench, rows):
    job = bench.submit("benchmark", rows[0], **{**FIELDS, "repeats": 500})
    claimed = bench.claim()
    st.jobs.request(bench.store, job.id, "cancel")
    assert bench.perform(claimed).state == "cancelled"
