"""Operations in the test's own process, through a store that the tests of a file share."""

from __future__ import annotations

import pytest

from core.model_manager import ModelManager
from tests.core.in_process import InProcess


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    """A store, and jobs that run at once; files that need another one override it."""
    from core.settings import Settings

    made = InProcess(Settings(home=tmp_path_factory.mktemp("bench"), data_dir=data_dir, device="cpu"))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def service(bench):
    """A service over the bench's store that starts no worker: its jobs wait for `bench.perform`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelManager, "_ensure_worker", lambda _self, _device: None)
        made = ModelManager(settings=bench.settings)
        yield made
        made.store.close()
