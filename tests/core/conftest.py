"""Operations in the test's own process, through a store that the tests of a file share."""

from __future__ import annotations

import pytest

from tests.core.in_process import InProcess


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    """A store, and jobs that run at once; files that need another one override it."""
    from core.settings import Settings

    made = InProcess(Settings(home=tmp_path_factory.mktemp("bench"), data_dir=data_dir, device="cpu"))
    yield made
    made.store.close()
