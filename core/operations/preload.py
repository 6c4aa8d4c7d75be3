"""Imported once by the worker's fork server, so that a job starts at once: torch alone takes seconds. Runs no operation."""

import datasets  # noqa: F401
import torch  # noqa: F401

from core.jobs import child  # noqa: F401
from core.operations import benchmark, evaluate, import_, prune, retrain  # noqa: F401
