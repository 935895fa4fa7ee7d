"""Memory that is free but not given back: what the C library keeps of freed tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def release_freed() -> None:
    """Hand the pages of freed tensors back to the system.

    glibc keeps them where a tensor that lives on lies behind, so that a process which keeps something of each
    of many large passes grows by gigabytes. Nothing happens with another C library.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc; no C library by that name on Windows
        return None
