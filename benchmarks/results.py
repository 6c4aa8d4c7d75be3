"""`RESULTS.md`: one section a benchmark, each replaced by its next run."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from core.operations.clock import device_name

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = (
    "# Measured\n\nBy `make bench`; ratios within one run, since machines are noisy. What needs a GPU was not measured yet, for none was "
    "at hand: `make gpu` writes `RESULTS-gpu.json`, `make gpu-quality` a section of this file. Sections of commits before 5de8f13 have "
    "their milliseconds of jobs that gave freed memory back to the system, in which large models are slower (see the section on memory).\n"
)


def machine() -> str:
    """What a figure was measured on, and which code."""
    root = Path(__file__).parents[1]
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    commit = asked.stdout.strip() or "unknown"
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{device_name('cpu')}, {threads}, commit {commit}, {datetime.now(UTC):%Y-%m-%d}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def write_section(title: str, lines: list[str]) -> None:
    """Replaces the section of this title, or adds it at the end."""
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    section = f"## {title}\n\n" + "\n".join(lines) + "\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _found: section + "\n", text)
    else:
        text = text.rstrip("\n") + "\n\n" + section
    RESULTS.write_text(text.rstrip("\n") + "\n")
