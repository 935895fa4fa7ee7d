"""What PyTorch says of its own inner life is not the user's."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def quiet(loggers: Sequence[str], level: int) -> Iterator[None]:
    """While it is entered, nothing warns, and ``loggers``, by name, tell what is of ``level`` or more alone.

    Nor is anything written to stderr: PyTorch prints whole graphs there when it fails.

    A logger with a level of its own does not heed the one above it: it must be named too.
    """
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, own in zip(found, before, strict=True):
            logger.setLevel(own)
