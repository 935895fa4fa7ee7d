"""Signals that ask a run to end: it unwinds as from an error, so that drafts go and finished parts stay.

    SIGINT (Ctrl-C), SIGTERM, SIGHUP     raise Interrupted once; a second one ends the process at once

A signal that was ignored when the process started (``nohup``, a job in the background) stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """The run was asked to end; notes (``add_note``) tell what was kept.

    A KeyboardInterrupt, because libraries let that pass where they catch exceptions.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """As of a process that the signal ended: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number

    @property
    def line(self) -> str:
        return "; ".join((str(self), *getattr(self, "__notes__", ())))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in the block where a signal comes; only the main thread can ask for it.

    Where a library has put a KeyboardInterrupt of its own in its place, as Ray does, that ends up as it too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    seen: int | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen is not None:
            os._exit(128 + number)
        seen = number
        raise Interrupted(number)

    for name in _SIGNALS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        if seen is None or isinstance(error, Interrupted):
            raise
        stopped = Interrupted(seen)
        for note in getattr(error, "__notes__", ()):
            stopped.add_note(note)
        raise stopped from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> None:
    """End the process with ``code``, without waiting for workers that are in the middle of something."""
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)
