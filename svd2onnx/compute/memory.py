"""Memory that is free but not given back: what the C library keeps of freed tensors.

glibc keeps them where a tensor that lives on lies behind, so that a process which keeps something of each of
many large passes grows by gigabytes. Nothing happens here with another C library.
"""

from __future__ import annotations

import ctypes
import functools

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE = 1 << 20


def release_freed() -> None:
    """Hand the pages of freed tensors back to the system."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def release_at_once() -> None:
    """From now on, every large tensor's pages go back when it is freed, and each costs the time to get them.

    This is for work whose peak would not fit otherwise.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # no C library by that name on Windows
        return None
    return library if hasattr(library, "malloc_trim") else None
