"""Where pieces of work are done: joblib's backends, entered for a whole run.

    threads      of this process; nothing is copied
    processes    of this machine (loky): a task and its result are copied
    auto         processes, as many as torch has threads, for much work on layers; threads for all else
    ray          of a Ray cluster: the one at RAY_ADDRESS, or a new one on this machine

What is done there is ``workers``' matter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import joblib
import torch
from joblib.externals.loky import get_reusable_executor

from svd2onnx.values.errors import ExecutorError, one_line

THREADS, PROCESSES, RAY, AUTO = "threads", "processes", "ray", "auto"
_MUCH = 1 << 22
"""Weights from which on processes are worth their start: the steps of rounding are so small that threads, of
which only one has Python at a time, mostly wait for each other."""
_SHARE = 0.5
"""Of a core that a worker asks Ray for: all find room, though Ray counts a lost machine for a while."""


_ANSWERS_S = 30.0
"""Seconds that a cluster may take to answer at all."""
_TRACKERS = (
    "multiprocessing.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
    "joblib.externals.loky.backend.stdlib_py314_resource_tracker",
)


@dataclass(frozen=True)
class Executor:
    """A backend of joblib with its ``options``; ``cores`` counts those that it has at the moment."""

    name: str
    backend: str
    cores: Callable[[], int]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_process(self) -> bool:
        """Whether workers see the memory of this process."""
        return self.name in (THREADS, AUTO)

    def suited(self, weights: int, device: torch.device) -> Executor:
        """What is to be used for work on so many ``weights``; a GPU is this process's."""
        if self.name == AUTO and weights >= _MUCH and device.type == "cpu" and self.cores() > 1:
            return _in_processes
        return _in_threads if self.name == AUTO else self


def _prepare_worker() -> None:
    """The parent ends its workers: Ctrl-C, which a terminal sends to them too, is not for them to tell of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a model file prints has been printed by the parent, whose stdout may be for the result alone.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


_in_threads = Executor(THREADS, "threading", torch.get_num_threads)
# Arrays are not to be mapped: joblib would keep those of all tasks in memory until the last is done.
_OPTIONS = {"initializer": _prepare_worker, "max_nbytes": None}
_in_processes = Executor(PROCESSES, "loky", torch.get_num_threads, _OPTIONS)
_for_work = Executor(AUTO, "threading", torch.get_num_threads)
_current: ContextVar[Executor] = ContextVar("executor", default=_in_threads)


def current() -> Executor:
    """The one that was entered last; threads where none was."""
    return _current.get()


@contextlib.contextmanager
def executor(name: str) -> Iterator[None]:
    """Let what is done in the block be done by ``name``: "threads", "processes", "auto" or "ray".

    Raises:
        ExecutorError: there is none of that name, or Ray is missing or cannot be reached.
    """
    kinds = {
        THREADS: _threads,
        PROCESSES: lambda: _processes(replace(_in_processes, cores=joblib.cpu_count)),
        AUTO: lambda: _processes(_for_work),
        RAY: _ray,
    }
    if name not in kinds:
        raise ExecutorError(f"the executor must be one of {tuple(kinds)}, not {name!r}")
    with kinds[name]() as entered:
        before = _current.set(entered)
        try:
            yield
        finally:
            _current.reset(before)


def is_loss(error: BaseException) -> bool:
    """Whether a worker ended in the middle of a task: killed, out of memory, or its machine is gone."""
    if isinstance(error, BrokenProcessPool):
        return True
    ray = sys.modules.get("ray")
    return (
        ray is not None
        and isinstance(error, ray.exceptions.RayError)
        and not isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.RaySystemError)
    )


@contextlib.contextmanager
def _threads() -> Iterator[Executor]:
    yield _in_threads


@contextlib.contextmanager
def _processes(entered: Executor) -> Iterator[Executor]:
    is_done = False
    _silence_joblib()
    try:
        yield entered
        is_done = True
    finally:
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=not is_done)


@contextlib.contextmanager
def _ray() -> Iterator[Executor]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError as error:
        raise ExecutorError(
            f"--executor ray needs Ray ({error}): pip install 'svd2onnx[ray]', here and on every machine of "
            "the cluster"
        ) from error

    class Backend(RayBackend):  # type: ignore[misc]
        """Ray's, which inherits from one of processes that no generator may outlive; its own may be."""

        supports_return_generator = True

    joblib.register_parallel_backend("svd2onnx-ray", Backend)

    def cores() -> int:
        return int(ray.cluster_resources().get("CPU", 0))

    mine = not ray.is_initialized()
    _silence_joblib()
    try:
        if mine:
            _connect(ray)
        yield Executor(RAY, "svd2onnx-ray", cores, {"ray_remote_args": {"num_cpus": _SHARE}})
    finally:
        if mine:
            ray.shutdown()


def _silence_joblib() -> None:
    """Let joblib not warn of what costs nothing.

    That is what an interrupted run leaves to the processes that clear up after it, and that a worker which
    had come to hold much memory was replaced between two tasks.
    """
    filters = [os.environ.get("PYTHONWARNINGS"), *(f"ignore::UserWarning:{module}" for module in _TRACKERS)]
    os.environ["PYTHONWARNINGS"] = ",".join(own for own in filters if own)
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)


def _connect(ray: Any) -> None:
    """Join the cluster at RAY_ADDRESS, or start one here."""
    address = os.environ.get("RAY_ADDRESS", "")
    own = {} if address else {"include_dashboard": False}
    try:
        if named := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):
            # Ray itself ends the process where nobody answers.
            socket.create_connection((named[1], int(named[2])), timeout=_ANSWERS_S).close()
        with _signals_kept():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:
        where = f"cannot join the Ray cluster at RAY_ADDRESS={address}" if address else "Ray cannot start"
        raise ExecutorError(
            f"{where}: {one_line(error)}; `ray status` tells of a cluster, "
            "whose Ray and Python must be those of here"
        ) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and a run would no longer unwind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
