"""Whether `torch.compile` can work here: its compiler writes C++ for the CPU and Triton for GPUs, and needs theirs. No torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from dcaecore.errors import ConfigError


def compiler_status(device: str) -> tuple[bool, str]:
    """Whether a model can be compiled for a device (`cpu`, `cuda:0`), and if not, what is missing."""
    if device.startswith("cuda"):
        if importlib.util.find_spec("triton") is None:
            return False, "the package `triton` is not installed"
        name = os.environ.get("CC") or next((one for one in ("gcc", "clang", "cc") if shutil.which(one)), "gcc")
    else:
        name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        return False, f"there is no compiler {name!r}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return False, "Python's headers (Python.h) are not installed"
    return True, "available"


def check_compiler(device: str) -> None:
    """Raises ConfigError where a model cannot be compiled."""
    available, reason = compiler_status(device)
    if not available:
        raise ConfigError(
            f"The model cannot be compiled: {reason}.", code="no_compiler", given=True, legal=False,
            next="Train without compile_model; the result is the same but for rounding.",
        )  # fmt: skip
