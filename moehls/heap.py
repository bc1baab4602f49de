"""Memory that was freed goes back to the system: in goes nothing, out comes nothing.

Weights of a few megabytes come from the C library's heap, which keeps what is freed between them: reading a model leaves several
times its weights there.
"""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Collect what refers to itself, and `trim`."""
    gc.collect()
    trim()


def trim() -> None:
    """Return all free pages, where the C library can (glibc's `malloc_trim`)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
