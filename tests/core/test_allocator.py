"""A job's process keeps the memory that it has freed: the next array of that size costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import torch

from core.jobs import allocator, child

FAULTS = """
import resource, sys
import numpy as np
from core.jobs.allocator import keep_memory
said = sys.argv[1] == "keeps" and keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(40_000_000, dtype=np.uint8).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(3)), int(said))
"""


def _faults(way: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, way], check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def test_freed_memory_is_used_again_without_page_faults_wherever_it_says_so():
    (given_back, _), (kept, said) = _faults("gives"), _faults("keeps")
    assert (kept * 4 < given_back) == bool(said), "40 MB are ten thousand pages of 4 KiB, or twenty of 2 MiB"


def test_every_jobs_process_does_so(monkeypatch):
    seen = []
    for name in ("become_torchrun", "run_job", "keep_memory"):
        monkeypatch.setattr(child, name, lambda *_arguments, name=name: seen.append(name))
    monkeypatch.setattr(child.signal, "signal", lambda *_arguments: None)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _on: None)  # the tests that follow go on as they were
    child.main("{}", "j_1")
    assert seen == ["become_torchrun", "keep_memory", "run_job"], "before any work"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _name: object())
    assert allocator.keep_memory() is False
