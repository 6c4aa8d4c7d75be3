"""Memory that a job's process has freed stays its own: pages that are asked of the system anew are zeroed and mapped anew.

glibc maps large arrays one by one, from a threshold of 128 KiB that moves up to 32 MiB with what was freed before, and hands freed memory
back to the system. So a model whose activations are large pays for tens of thousands of page faults a run, as many as what ran before
happens to decide: `benchmarks.memory` has the figures. mallopt(3) turns both off. Nothing changes where the C library is another one, nor
on a GPU.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def keep_memory() -> bool:
    """From here on this process gives nothing back before it ends; False where the C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl have none; Windows has no library of that kind
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _MOST)) and bool(mallopt(_M_MMAP_MAX, 0))
