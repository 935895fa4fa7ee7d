"""Run contenders in a process of their own, within limits of time and memory.

A peer may print, hang, crash, or ask for more memory than there is. Over here none of that ends the
benchmark: it becomes the reason on a row.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the other process needs them only once it has a job
    from benchmarks.contenders import Contender
    from benchmarks.task import Task

_GIGABYTE = 1e9
_LOOK = 0.5  # seconds between two looks at the memory


class PeerError(Exception):
    """A contender wrote no file; the message is the whole reason, in one line."""


@dataclass
class Worker:
    """One process, started when first needed and anew after a contender had to be stopped.

    It is spawned, not forked: a fork of a process whose threads have computed can hang. The time limit
    is in minutes; the memory limit, in gigabytes, holds where Linux tells the memory of a process.
    """

    minutes: float
    gigabytes: float
    _process: SpawnProcess | None = field(default=None, repr=False)
    _connection: Connection | None = field(default=None, repr=False)
    _last: str | None = field(default=None, repr=False)

    def compress(self, task: Task, contender: Contender, output: Path) -> None:
        """Let ``contender`` write ``output``.

        Raises:
            PeerError: it failed, or was stopped at a limit.
        """
        if contender.name != self._last and self._process and _memory(self._process.pid) > self.gigabytes / 4:
            self.close()  # what one contender left behind is not the next one's fault
        self._last = contender.name
        process, connection = self._started()
        connection.send((task, contender, output))
        try:
            reason = self._answer(process, connection)
        except PeerError:
            self.close()
            raise
        if reason:
            raise PeerError(reason)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _started(self) -> tuple[SpawnProcess, Connection]:
        if self._process is None or self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
        return self._process, self._connection

    def _answer(self, process: SpawnProcess, connection: Connection) -> str:
        """Why the contender failed, or "" if it did not."""
        deadline = time.monotonic() + 60 * self.minutes
        while not connection.poll(_LOOK):
            if time.monotonic() > deadline:
                raise PeerError(f"stopped: it needs more than {self.minutes:g} minutes")
            if _memory(process.pid) > self.gigabytes:
                raise PeerError(f"stopped: it needs more than {self.gigabytes:g} GB of memory")
        try:
            return str(connection.recv())
        except EOFError as error:
            process.join()
            code = process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise PeerError(f"its process ended with {how}") from error


@contextlib.contextmanager
def worker(minutes: float, gigabytes: float) -> Iterator[Worker]:
    """A worker that is closed at the end."""
    started = Worker(minutes, gigabytes)
    try:
        yield started
    finally:
        started.close()


def _serve(connection: Connection) -> None:
    """The other process: answer each job with a reason, "" for success."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the libraries' progress bars and logs would bury the table
        os.dup2(silence, stream)
    with contextlib.suppress(EOFError):
        while True:
            task, contender, output = connection.recv()
            try:
                contender.run(task, output)
                connection.send("")
            except Exception as error:  # any library, any reason
                connection.send(" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _memory(pid: int | None) -> float:
    """The memory that a process holds, in gigabytes; 0 where nothing tells."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _GIGABYTE
    return 0.0
