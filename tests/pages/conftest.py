"""Two models with figures and pictures, measured in the test's own process, so that pages start with them."""

from __future__ import annotations

import pytest

import store as st
from core.settings import Settings
from tests.conftest import stop_workers
from tests.core.in_process import InProcess


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
