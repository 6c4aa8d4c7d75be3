"""Two models with figures and pictures, measured in the test's own process, so that pages start with them."""

from __future__ import annotations

import shutil

import pytest
import torch

import store as st
from core.model_manager import ModelManager
from core.settings import Settings
from tests.conftest import stop_workers
from tests.core.in_process import Inline, InProcess


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    """A store of the file's own, and jobs that run at once; pages may start a worker on it, which ends with it."""
    home = tmp_path_factory.mktemp("pages") / "home"
    made = InProcess(Settings(home=home, data_dir=data_dir, device="cpu", num_threads=1))
    yield made
    made.store.close()
    stop_workers(home)


@pytest.fixture(scope="module")
def pair(bench):
    """A baseline, which is the current model, and a pruned one: evaluated on 20 images of which 12 are kept, and benchmarked."""
    base = bench.add(name="base").id
    pruned = bench.run("prune", base, rate=0.5).model_id
    st.set_alias(bench.store, "current", base)
    for ref in (base, pruned):
        bench.run("evaluate", ref, image_size=32, num_images=20, num_save_images=12)
    how = {"image_size": 32, "repeats": 3, "warmup": 1, "starts": 0, "batch_sizes": [1, 4], "sweep_repeats": 3}
    bench.run("benchmark", pruned, **how)
    return base, pruned


@pytest.fixture(scope="session")
def family_home(tmp_path_factory, data_dir):
    """A store with a baseline and its pruned offspring, both evaluated and timed; made once, without a worker."""
    settings = Settings(home=tmp_path_factory.mktemp("family") / "home", data_dir=data_dir, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have, which make a model again
    worker = Inline(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.model_manager.ensure_worker", worker)
        manager = ModelManager(settings=settings)
        tiny = manager.initialize_model("tiny", random_seed=0, name="tiny")
        pruned = manager.wait(manager.prune_model(tiny.id, {"rate": 0.5}).id).model_id
        for ref in (tiny.id, pruned):
            manager.wait(manager.evaluate_model(ref, {"image_size": 32, "num_images": 16}).id)
        manager.wait(manager.benchmark_models([tiny.id, pruned], {"image_size": 32, "repeats": 3, "starts": 0}).id)
        manager.store.close()
    worker.bench.store.close()
    torch.set_num_threads(threads)
    return settings.home, (tiny.id, pruned)


@pytest.fixture
def family(settings, family_home):
    """The ids of both, in a store of the test's own; stands before `manager` among a test's arguments, which opens that store."""
    home, ids = family_home
    shutil.copytree(home, settings.home)
    return ids
