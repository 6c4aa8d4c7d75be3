from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from store import Store, open_store

# A deadline on a busy machine measures the machine.
settings.register_profile("store", deadline=None, max_examples=60)
settings.load_profile("store")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "home")
    yield opened
    opened.close()
