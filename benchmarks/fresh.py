"""The store that a benchmark works in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.model_manager import ModelManager
from core.settings import read_settings
from dcaecore.sample_data import ensure_sample_set


@contextmanager
def service(home: Path | None = None) -> Iterator[ModelManager]:
    """A service over `home`, which stays, or over a folder that goes at the end; the sample images are there."""
    settings = read_settings()
    with tempfile.TemporaryDirectory() as scratch:
        settings = settings.model_copy(
            update={"home": home or Path(scratch), "data_dir": settings.data_folder, "worker_idle_s": 20.0}
        )
        ensure_sample_set("mspacman", settings.data_folder / "samples")
        manager = ModelManager(settings=settings)
        try:
            yield manager
        finally:
            manager.store.close()
