"""The child processes of `benchmarks.store_speed`: writers that are killed, and writers that meet on a cold store."""

from __future__ import annotations

import os
from typing import Any

from store import MetricWriter, open_store
from store.ancestry import add_model
from tests.store.builders import new_model

KEYS = [f"metric_{number}" for number in range(10)]


def row(step: int) -> dict[str, float]:
    """Ten metrics of a step."""
    return {key: float(step + number) for number, key in enumerate(KEYS)}


def log_for_ever(root: str, job: str, told: Any) -> None:
    """Logs steps from 1, and tells each as eight bytes through a pipe when its `log` has returned."""
    store = open_store(root)
    with MetricWriter(store, job) as writer:
        step = 0
        while True:
            step += 1
            writer.log(step, row(step))
            os.write(told.fileno(), step.to_bytes(8, "little"))


def write_cold(root: str, name: str, together: Any) -> None:
    """A writer on a store that nobody has made yet; both begin at the barrier."""
    together.wait()
    store = open_store(root)
    for number in range(3):
        add_model(store, new_model(store, f"model {name} {number}"))
    store.close()
