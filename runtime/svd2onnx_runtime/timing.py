"""The runs of several graphs, timed in turn.

The graphs take turns (a, b, then b, a, ...), so that a slow moment of the machine hits all of them,
and the latency ratio is the median over rounds of the ratio within a round, which such moments
barely move. Before each timed run there is a rest and a run that is not timed: after a run, the
threads of a session go on spinning for a while, which takes the cores from the next session (with two
threads on two cores, float32 took 38 ms in place of 18). On CUDA the inputs and outputs stay in fixed
GPU buffers (IOBinding): no copy is timed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svd2onnx_runtime.errors import InputsError, naming
from svd2onnx_runtime.installation import onnxruntime
from svd2onnx_runtime.session import (
    Array,
    Session,
    graph_inputs,
    open_reference,
    open_session,
    provider_of,
    run,
)

_LEAST_ROUNDS = 3
_REST = 0.03
"""Seconds in which spinning threads come to rest."""


@dataclass(frozen=True)
class TimedRuns:
    """The runs of some graphs in turn: ``seconds`` [repeats, graphs], the reference first.

    ``feeds`` are the inputs that each graph took; ``provider``, ``tf32`` and ``batch`` are those of
    ``BenchResult``.
    """

    provider: str
    tf32: bool | None
    batch: int
    feeds: tuple[dict[str, Array], ...]
    seconds: Array

    @property
    def ratios(self) -> Array:
        """The median over rounds of each graph's time over the reference's in that round, [graphs]."""
        ratios: Array = np.median(self.seconds / self.seconds[:, :1], axis=0)
        return ratios


def time_runs(
    paths: Sequence[str | os.PathLike[str]],
    inputs: Mapping[str, Array],
    provider: str = "auto",
    threads: int | None = None,
    *,
    repeats: int = 50,
    warmup: int = 5,
    most_s: float = math.inf,
) -> TimedRuns:
    """Time the graphs at ``paths`` (the first is the reference) in turn on the same ``inputs``.

    After ``most_s`` seconds no further round begins, once there are three: large networks need fewer.

    Their sessions are closed on return, so that they do not weigh on what is measured next. Raises
    ProviderError, GraphError and InputsError.
    """
    if not paths or repeats < 1 or warmup < 0:
        raise InputsError(
            "expected at least one graph, repeats >= 1 and warmup >= 0, found "
            f"{len(paths)} graphs, repeats = {repeats} and warmup = {warmup}"
        )
    reference, *others = paths
    sessions = [open_reference(reference, provider, threads=threads)]
    sessions += [open_session(path, provider, threads=threads) for path in others]
    actual = provider_of(sessions[0])
    feeds, calls = [], []
    for path, session in zip(paths, sessions, strict=True):
        with naming(path):
            feeds.append(graph_inputs(session, inputs))
            calls.append(
                BoundCall(session, feeds[-1], "cuda") if actual == "cuda" else _call(session, feeds[-1])
            )
    return TimedRuns(
        provider=actual,
        tf32=_tf32(sessions[0]) if actual == "cuda" else None,
        batch=_batch(feeds[0]),
        feeds=tuple(feeds),
        seconds=_interleaved(calls, repeats, warmup, most_s),
    )


def _interleaved(
    calls: Sequence[Callable[[], Any]], repeats: int, warmup: int, most_s: float = math.inf
) -> Any:
    """Seconds [rounds, graphs]; the order turns around from round to round."""
    begun = time.perf_counter()
    for _ in range(warmup):
        if time.perf_counter() - begun > most_s / 2:
            break
        for call in calls:
            call()
    seconds = np.empty((repeats, len(calls)))
    order = list(range(len(calls)))
    for turn in range(repeats):
        if turn >= _LEAST_ROUNDS and time.perf_counter() - begun > most_s:
            return seconds[:turn]
        for i in order if turn % 2 == 0 else reversed(order):
            time.sleep(_REST)
            calls[i]()
            start = time.perf_counter()
            calls[i]()
            seconds[turn, i] = time.perf_counter() - start
    return seconds


def _call(session: Session, feeds: dict[str, Array]) -> Callable[[], Any]:
    """One run from and to host memory; a first run reports inputs that do not fit."""
    run(session, feeds)
    return lambda: session.run(None, feeds)


class BoundCall:
    """One run between fixed buffers on ``device``, returning after the device has finished."""

    def __init__(self, session: Session, feeds: Mapping[str, Array], device: str) -> None:
        outputs, values = run(session, feeds), onnxruntime().OrtValue
        self._session, self._binding = session, session.io_binding()
        self._values = []
        for name, array in feeds.items():
            self._values.append(values.ortvalue_from_numpy(array, device, 0))
            self._binding.bind_ortvalue_input(name, self._values[-1])
        for name, array in outputs.items():
            self._values.append(values.ortvalue_from_shape_and_type(array.shape, array.dtype, device, 0))
            self._binding.bind_ortvalue_output(name, self._values[-1])

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def touch(self) -> None:
        """Read all buffers, which brings them into the caches of the device."""
        for value in self._values:
            value.numpy().sum()


def _batch(feeds: Mapping[str, Array]) -> int:
    """The first axis of the graph's first input; 1 for a graph that takes a scalar or nothing."""
    shapes = [array.shape for array in feeds.values()]
    return int(shapes[0][0]) if shapes and shapes[0] else 1


def _tf32(session: Session) -> bool:
    options = session.get_provider_options()["CUDAExecutionProvider"]
    return bool(options.get("use_tf32") == "1")
