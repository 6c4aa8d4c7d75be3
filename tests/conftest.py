"""Shared fixtures: one small sample set for the whole run, and stores whose workers end with their test."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ["OFFSHOOT_MIRROR"] = "off"
"""A developer with a W&B key does not get the tests' runs; the mirror's own tests take it out."""


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose `mspacman` set is small: 6 episodes of 20 frames."""
    from dcaecore.sample_data import write_sample_set

    folder = tmp_path_factory.mktemp("data")
    write_sample_set("mspacman", folder / "samples", episodes=6, frames_per_episode=20)
    return folder


@pytest.fixture
def settings(tmp_path, data_dir):
    """Settings of a fresh store; its workers are stopped at the end."""
    from core.settings import Settings

    home = tmp_path / "home"
    yield Settings(home=home, data_dir=data_dir, device="cpu", worker_idle_s=90, num_threads=1, pause_release_s=0.5)
    stop_workers(home)


@pytest.fixture
def manager(settings):
    """A service over a fresh store."""
    from core.model_manager import ModelManager

    made = ModelManager(settings=settings)
    yield made
    made.store.close()


def stop_workers(home: Path) -> None:
    """Stops the workers of a store, with their fork servers and children."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "core.jobs.worker" in line and str(home) in line:
            with suppress(psutil.NoSuchProcess):  # a worker may end by itself at any moment
                kill_family(process)


def kill_family(process: psutil.Process) -> None:
    """Kills a process and what it started."""
    family = [*process.children(recursive=True), process]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family, timeout=5)


@pytest.fixture
def untraced():
    """No coverage while a test runs: torch's exporters are all Python, and take three times as long when they are traced."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)
