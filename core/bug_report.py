"""What a bug report should say of this machine and of the last failure: text to copy, without paths or images."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import store.jobs as jobs
from core.devices import devices
from store import Store

PACKAGES = ("torch", "torch-pruning", "streamlit", "sqlmodel", "datasets", "wandb")


def bug_report(store: Store) -> str:
    """Versions, devices, and the last failed job with the end of its traceback."""
    lines = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines += [f"device {device.name}: {device.title}" for device in devices()]
    failed = next(iter(jobs.list_jobs(store, ("failed",), 1)), None)
    if failed is not None and failed.error is not None:
        lines += ["", f"Last failed job: {failed.operation} {failed.id}", str(failed.error.get("message", ""))]
        lines += str(failed.error.get("traceback") or "").splitlines()[-12:]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
