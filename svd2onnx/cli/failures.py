"""What the machine refuses, as one line that says what to do: memory, and room or rights on the disk.

Libraries report these in many ways, and wrap them; the line is found through the chain of causes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "failed to allocate memory",
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FULL = os.strerror(errno.ENOSPC).lower()


def refusal(error: BaseException) -> str | None:
    """The line for ``error`` where the machine refused something; None where it did not."""
    for cause in _causes(error):
        if _says(cause, "cuda out of memory"):
            return (
                "out of memory on the GPU: use --device cpu, or ask for less there: smaller batches in "
                "inputs(split), or nothing else on that GPU; nothing was written"
            )
        if type(cause).__name__ == "_LinAlgError":
            return (
                "a weight cannot be decomposed, most likely because its values are not finite or too large "
                "to square: check the file, or leave its layer out with --exclude; nothing was written"
            )
        if isinstance(cause, MemoryError) or _says(cause, *_NO_MEMORY):
            return (
                "out of memory: free some, or ask for less: fewer --calibration-samples, smaller batches in "
                "inputs(split), one layer kind at a time with --only; nothing was written"
            )
        if (isinstance(cause, OSError) and cause.errno in _NO_ROOM) or _says(cause, _FULL):
            return f"the disk is full{_place(cause)}: free some room and run again; nothing was replaced"
        if isinstance(cause, OSError) and cause.errno == errno.EFBIG:
            return (
                f"a file would be larger than is allowed here{_place(cause)}: raise the limit (ulimit -f) "
                "or use another disk; nothing was replaced"
            )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _says(error: BaseException, *texts: str) -> bool:
    words = str(error).lower() if isinstance(error, Exception) else ""
    return any(text in words for text in texts)


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" ({name})" if name else ""
