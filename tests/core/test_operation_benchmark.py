"""Benchmark: several models in one measurement, warm and synchronised, figures as numbers with their units."""

from __future__ import annotations

import time

import pytest
import torch

import store as st
from core.compare import compare
from core.cost import BYTES_TITLE, conditions_text, cost_lines, sweep_points, sweep_rows
from core.errors import CoreError
from core.operations import benchmark, clock, energy, startup, sweep
from core.specs import BenchmarkSpec
from dcaecore import ConfigError
from store import StoreError

FIELDS = {"image_size": 32, "repeats": 3, "warmup": 1, "starts": 0}


@pytest.fixture(scope="module")
def rows(bench):
    base = bench.add()
    pruned = bench.run("prune", base.id, rate=0.5)
    return base.id, pruned.model_id, bench.add(seed=7, name="other").id


def rows_parameters(bench, ref):
    return st.get_model(bench.store, ref).facts["parameters"]


def test_one_measurement_holds_all_models_and_the_baseline(bench, rows):
    base, pruned, other = rows
    bench.run("benchmark", pruned, models=[other], **{**FIELDS, "starts": 2})
    found = st.scores.measurements(bench.store, pruned)[0]
    assert set(found.models) == {base, pruned, other}
    assert found.device == "cpu" and found.dtype == "float32"
    assert found.settings["threads"] == torch.get_num_threads() and found.settings["repeats"] == 3
    assert found.settings["device_name"] and found.settings["torch"] == torch.__version__
    assert found.settings["warmup"] == 1 and found.settings["starts"] == 2 and found.settings["synchronisation"] == "none needed"
    for figures in found.models.values():
        for what in ("encode", "decode", "both"):
            assert 0 < figures[f"{what}_ms"] <= figures[f"{what}_p95_ms"] <= figures[f"{what}_p99_ms"]
            assert figures[f"{what}_images_per_s"] == pytest.approx(1e3 / figures[f"{what}_ms"])
            assert figures[f"{what}_spread_ratio"] >= 0
        assert figures["start_ms"] == pytest.approx(figures["load_ms"] + figures["first_run_ms"], rel=0.5)
        assert figures["load_ms"] > 0 and figures["first_run_ms"] > 0
        assert 1e5 < figures["peak_resident_bytes"] < 1e9, "of this model alone, not of the process with torch in it"
        assert figures["loaded_bytes"] == sum(figures["loaded_bytes_by_dtype"].values())
        assert "energy_j_per_image" not in figures and "CPU" in figures["not_measured"]["energy_j_per_image"]
        assert all(isinstance(value, float) for value in figures.values() if not isinstance(value, dict))
    sizes = {ref: figures["loaded_bytes"] for ref, figures in found.models.items()}
    assert sizes[base] == sizes[other] == 4 * rows_parameters(bench, base) and sizes[pruned] < sizes[base]
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


def test_an_apple_gpus_clock_waits_too(monkeypatch):
    order = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: order.append("wait"))
    clock.seconds(lambda: order.append("work"), "mps")
    assert order == ["wait", "work", "wait"] and clock.synchronisation("mps") == "torch.mps.synchronize"


def test_figures_are_of_the_repeats():
    values = [0.010 + 0.001 * i for i in range(11)]
    found = benchmark.figures({"encode": values, "decode": values}, batch_size=4)
    assert found["encode_ms"] == pytest.approx(15) and found["both_ms"] == pytest.approx(30)
    assert found["encode_p95_ms"] == pytest.approx(19.5) and found["encode_p99_ms"] == pytest.approx(19.9)
    assert found["encode_spread_ratio"] == pytest.approx(5 / 15)
    assert found["both_images_per_s"] == pytest.approx(4 / 0.030)


def test_a_process_that_dies_is_a_reason_and_no_figure(tmp_path):
    found = startup.start(tmp_path / "nothing.safetensors", BenchmarkSpec(**FIELDS), "cpu")
    figures, why = startup.summary([found, found])
    assert figures == {} and "exit code 1" in why["start_ms"]


def test_memory_is_not_told_where_the_peak_cannot_start_anew(monkeypatch, bench, rows):
    monkeypatch.setattr(startup, "reset_peak", lambda: False)
    path = bench.store.blobs.path(st.get_model(bench.store, rows[0]).blob_digest)
    figures, why = startup.summary([startup._timed(path, BenchmarkSpec(**FIELDS), "cpu")])
    assert figures["start_ms"] > 0 and "peak_resident_bytes" not in figures and "does not tell" in why["peak_resident_bytes"]


def test_the_peak_counts_what_was_held_and_let_go():
    assert startup.reset_peak()
    before = startup.peak_resident()
    hog = torch.ones(50_000_000)
    del hog
    assert startup.peak_resident() - before > 150e6
    assert startup.reset_peak() and startup.peak_resident() - before < 150e6


def test_a_sweep_has_every_size_and_batch_for_every_model(bench, rows):
    bench.run("benchmark", rows[1], batch_sizes=[4, 1, 4], image_sizes=[64, 32], sweep_repeats=3, **FIELDS)
    found = st.scores.measurements(bench.store, rows[1])[0]
    assert found.settings["sweep_repeats"] == 3 and set(found.models) == set(rows[:2])
    for figures in found.models.values():
        assert list(figures["sweep"]) == ["32x1", "32x4", "64x1", "64x4"]
        for point in figures["sweep"].values():
            for what in ("encode", "decode", "both"):
                assert point[f"{what}_images_per_s"] == pytest.approx(1e3 * point["batch_size"] / point[f"{what}_ms"])
    comparison = compare(bench.store, rows[:2])
    points = sweep_points(comparison, "encode")
    assert len(points) == 8 and {(p.image_size, p.batch_size) for p in points} == {(32, 1), (32, 4), (64, 1), (64, 4)}
    assert [line.title for line in sweep_rows(comparison)][-1] == "64 px, batch 4"


def test_a_batch_without_room_is_a_reason_and_the_other_sizes_go_on(bench, rows, monkeypatch):
    memory = type("Memory", (), {"available": 3_000_000, "total": 3_000_000})
    monkeypatch.setattr(sweep.psutil, "virtual_memory", lambda: memory)
    bench.run("benchmark", rows[0], batch_sizes=[1, 512], **FIELDS)
    points = st.scores.measurements(bench.store, rows[0])[0].models[rows[0]]["sweep"]
    assert points["32x1"]["decode_images_per_s"] > 0
    assert "decode_images_per_s" not in points["32x512"] and "GB are free" in points["32x512"]["not_measured"]
    (one,) = [p for p in sweep_points(compare(bench.store, rows[:1])) if p.batch_size == 512]
    assert one.images_per_s is None and "are free" in one.why


def test_sizes_are_refused_before_the_start(bench, rows, service):
    queued = len(st.jobs.list_jobs(bench.store, ("queued",), None))
    with pytest.raises(CoreError, match="other: Images of 36 x 36 px do not divide"):
        service.benchmark_models([rows[2]], {"image_sizes": [32, 36], "image_size": 32})
    with pytest.raises(CoreError, match="batch_sizes: each lies in 1 to 1024"):
        service.benchmark_models([rows[0]], {"batch_sizes": [0, 4]})
    with pytest.raises(CoreError, match="image_sizes"):
        service.benchmark_models([rows[0]], {"image_sizes": [8]})
    assert len(st.jobs.list_jobs(bench.store, ("queued",), None)) == queued


class Driver:
    """NVML of one GPU that draws 100 W."""

    class NVMLError(Exception):
        pass

    def __init__(self, counter: bool, power: bool = True) -> None:
        self.counter, self.power, self.started = counter, power, time.perf_counter()

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle):
        if not self.counter:
            raise self.NVMLError("Not Supported")
        return int((time.perf_counter() - self.started) * 100_000)

    def nvmlDeviceGetPowerUsage(self, _handle):
        if not self.power:
            raise self.NVMLError("Not Supported")
        return 100_000


@pytest.mark.parametrize("counter", [True, False])
def test_energy_is_joules_by_the_counter_or_the_power(monkeypatch, counter):
    """100 W at so many images a second are so many joules an image, whichever way they are counted."""
    monkeypatch.setattr(energy, "gpu_handle", lambda _device: (Driver(counter), 0))
    monkeypatch.setattr(energy, "STRETCH_S", 0.05)
    meter = energy.meter("cuda:0")
    assert isinstance(meter, energy.Counter if counter else energy.Power)
    passes = []

    class Fake:
        def encode(self, x):
            passes.append(len(x))
            time.sleep(0.002)
            return x

        def decode(self, z):
            return z

    found = energy.energy({"a": Fake()}, torch.zeros(4, 1), meter)["a"]
    assert found["power_w"] == pytest.approx(100, rel=0.1)
    seconds = energy.ROUNDS * energy.STRETCH_S
    assert found["energy_j_per_image"] == pytest.approx(100 * seconds / sum(passes), rel=0.25)


def test_without_a_driver_that_tells_there_is_a_reason(monkeypatch):
    assert "CPU" in energy.meter("cpu") and "NVML" in energy.meter("cpu")
    monkeypatch.setattr(energy, "gpu_handle", lambda _device: None)
    assert "no NVIDIA driver" in energy.meter("cuda:0")
    monkeypatch.setattr(energy, "gpu_handle", lambda _device: (Driver(False, False), 0))
    assert "neither energy nor power" in energy.meter("cuda:0")


def test_an_absent_baseline_is_left_out_and_told(bench):
    base = bench.add(seed=11, name="gone")
    child = bench.run("prune", base.id, rate=0.25).model_id
    bench.store.blobs.path(base.blob_digest).unlink()
    job = bench.run("benchmark", child, **FIELDS)
    assert list(st.scores.measurements(bench.store, child)[0].models) == [child]
    assert any("gone" in line["message"] and line["level"] == "warning" for line in bench.log(job))


def test_costs_are_of_one_run_and_another_can_be_chosen(bench, rows, service):
    bench.run("benchmark", rows[0], dtype="bfloat16", with_baseline=False, **FIELDS)
    bench.run("benchmark", rows[0], models=[rows[1]], **FIELDS)
    newest = compare(bench.store, rows[:2])
    assert newest.measurement["dtype"] == "float32" and not newest.notes
    runs = service.benchmark_runs(rows[:2])
    assert next(iter(runs)) == newest.run and "2 of 2 models" in runs[newest.run]
    other = next(number for number, title in runs.items() if "bfloat16" in title)
    half = compare(bench.store, rows[:2], other)
    assert half.measurement["dtype"] == "bfloat16" and half.figures[rows[1]]["decode_ms"].value is None
    assert "1 of 2 models was not in the benchmark run shown" in half.notes[0] and "bfloat16" in half.notes[0]
    with pytest.raises(CoreError, match="None of these models was in benchmark run 999"):
        compare(bench.store, rows[:2], 999)


def test_the_table_of_costs_has_each_tail_and_each_reason(bench, rows):
    bench.run("benchmark", rows[0], **FIELDS)
    comparison = compare(bench.store, rows[:1])
    lines = {line.title: line.cells[rows[0]] for line in cost_lines(comparison)}
    value = comparison.figures[rows[0]]["decode_p99_ms"].value
    assert f"p99 {value:,.2f})" in lines["Decode"] and "p95" in lines["Encode and decode"]
    assert lines["Energy an image"].startswith("not measured: only NVIDIA GPUs")
    assert lines["Start-up"].startswith("not measured: no start was asked for")
    assert (
        "float32" in lines["Weights in memory"]
        and lines[BYTES_TITLE]
        == f"{rows_parameters(bench, rows[0]) * 4e-6:.2f} / {rows_parameters(bench, rows[0]) * 2e-6:.2f} MB"
    )
    text = conditions_text(comparison.measurement)
    for said in ("CPU", "thread", "float32", "32 px", "batch 1", torch.__version__, "1 untimed and 3 timed repeats", "in turn"):
        assert said in text


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


SPARSE = {"dtype": "bfloat16", "sparse_kernels": True}


def test_2_4_kernels_stand_in_the_conditions_and_say_how_many_layers_they_run(monkeypatch, bench, rows):
    sparse = bench.run("prune", rows[0], method="two_four", skip_unfit=True).model_id
    with pytest.raises(CoreError, match="None of these models has a layer") as caught:
        bench.run("benchmark", rows[0], **SPARSE, **FIELDS)
    assert "two_four" in caught.value.next and "32" in caught.value.legal
    with pytest.raises(ConfigError, match="no kernels for 2:4 weights on cpu"):
        bench.run("benchmark", sparse, **SPARSE, **FIELDS)
    assert st.scores.measurements(bench.store, sparse) == []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)
    job = bench.run("benchmark", sparse, **SPARSE, **FIELDS)
    found = st.scores.measurements(bench.store, sparse)[0]
    assert found.settings["sparse_kernels"] is True and found.dtype == "bfloat16"
    assert {ref: own["sparse_kernel_layers"] for ref, own in found.models.items()} == {sparse: 8.0, rows[0]: 0.0}
    assert any("8 convolutions run on 2:4 kernels" in line["message"] for line in bench.log(job))
    shown = compare(bench.store, [sparse, rows[0]])
    assert "bfloat16, 2:4 kernels, 32 px" in conditions_text(shown.measurement)
    assert {line.title: line.cells for line in cost_lines(shown)}["Layers on 2:4 kernels"] == {sparse: "8", rows[0]: "0"}


def test_a_device_without_2_4_kernels_is_told_before_anything_is_queued(monkeypatch, service, bench, rows):
    before = len(service.jobs(limit=1000))
    asks = (
        lambda: service.benchmark_models([rows[0]], {**SPARSE, **FIELDS}),
        lambda: service.compress(rows[0], image_size=32, benchmark={**SPARSE, **FIELDS}),
    )
    for ask in asks:
        with pytest.raises(CoreError, match="no sparse tensor cores: cpu is no NVIDIA GPU") as caught:
            ask()
        assert "8.0" in caught.value.legal and "sparse_kernels" in caught.value.next
    with pytest.raises(CoreError, match="sparse_kernels would have no effect: it applies where dtype is bfloat16"):
        service.benchmark_models([rows[0]], {**FIELDS, "sparse_kernels": True})
    assert len(service.jobs(limit=1000)) == before
