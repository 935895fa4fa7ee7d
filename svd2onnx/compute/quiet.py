"""What PyTorch says of its own inner life is not the user's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def quiet(loggers: Sequence[str], level: int) -> Iterator[None]:
    """While it is entered, nothing warns, and ``loggers``, by name, tell what is of ``level`` or more alone.

    A logger with a level of its own does not heed the one above it: it must be named too.
    """
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, own in zip(found, before, strict=True):
            logger.setLevel(own)
