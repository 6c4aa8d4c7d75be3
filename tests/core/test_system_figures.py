"""What a job asked of its machine: sampled, stored beside its curves, mirrored with them."""

from __future__ import annotations

from core import system_figures
from core.model_manager import ModelManager
from core.operations.context import Context
from core.system_figures import SAMPLE_SECONDS, SystemFigures
from store import metrics

OWN = {f"system/{name}" for name in ("cpu_busy_ratio", "process_cores", "process_memory_gib", "memory_used_ratio")}


def test_a_sample_is_due_at_once_and_then_every_so_often(monkeypatch):
    monkeypatch.setattr(system_figures, "gpu_figures", lambda device: {"gpu_busy_ratio": 0.5} if device == "cuda:0" else {})
    clock = [100.0]
    figures = SystemFigures("cuda:0", clock=lambda: clock[0])
    first = figures.due()
    assert set(first) == {*OWN, "system/gpu_busy_ratio"} and first["system/gpu_busy_ratio"] == 0.5
    assert 0.01 < first["system/process_memory_gib"] < 64 and 0 < first["system/memory_used_ratio"] < 1
    clock[0] += SAMPLE_SECONDS - 0.1
    assert figures.due() == {} and figures.due(now=True).keys() == first.keys()
    clock[0] += SAMPLE_SECONDS
    assert set(SystemFigures("cpu", clock=lambda: clock[0]).due()) == OWN and figures.due() and figures.count == 3


def test_a_job_without_steps_counts_its_samples_and_a_training_has_them_at_its_steps(bench):
    tiny = bench.add()
    pruned = bench.run("prune", tiny.id, rate=0.3)
    assert OWN <= set(metrics.keys(bench.store, pruned.id)) and metrics.series(bench.store, pruned.id, min(OWN))[0] == [0]
    job = bench.submit("evaluate", tiny.id, image_size=32, num_images=4, num_save_images=0)
    context = Context(bench.store, bench.claim(), bench.settings)
    context.progress(0.1, force=True)
    context.progress(0.2, force=True)
    context.log_system(now=True)
    context.counts_steps = True
    context.log_system(now=True)
    context.close()
    assert metrics.series(bench.store, job.id, min(OWN))[0] == [0, 1]
    trained = bench.run(
        "retrain", tiny.id, image_size=32, batch_size=2, n_epochs=1, steps_per_epoch=3, warmup_epochs=0, val_steps=4, num_workers=0,
        num_save_images=0,
    )  # fmt: skip
    assert OWN <= set(metrics.keys(bench.store, trained.id))
    steps, losses_at = (metrics.series(bench.store, trained.id, key)[0] for key in (min(OWN), "loss"))
    assert steps[0] == 1 and list(losses_at) == [1, 2, 3]
    service = ModelManager(settings=bench.settings)
    assert "of memory at most" in service.machine_used(trained.id) and "core" in service.machine_used(trained.id)
    service.store.close()
