"""Latency, throughput, load time, memory and size of graphs, side by side on one provider.

The graphs take turns (a, b, then b, a, ...), so that a slow moment of the machine hits all of them,
and the latency ratio is the median over rounds of the ratio within a round, which such moments
barely move. On CUDA the inputs and outputs stay in fixed GPU buffers (IOBinding): no copy is timed.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svd2onnx_runtime.errors import InputsError
from svd2onnx_runtime.memory import measure_footprint
from svd2onnx_runtime.session import (
    Array,
    Session,
    graph_inputs,
    open_session,
    ort_version,
    provider_of,
    run,
)


@dataclass(frozen=True)
class GraphTiming:
    """One graph: latencies of one run in ms, throughput, load time and what it occupies.

    ``resident_mb`` is host memory (10^6 bytes) added by loading and running it once, measured like
    ``load_s`` in a fresh process. ``file_bytes`` includes external data. ``latency_ratio`` is to
    the first graph: below 1 is faster.
    """

    name: str
    path: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    p99_ms: float
    samples_per_s: float
    latency_ratio: float
    load_s: float
    resident_mb: float | None
    file_bytes: int


@dataclass(frozen=True)
class BenchResult:
    """All graphs of one benchmark, the reference first, and the conditions they shared.

    ``threads`` None is onnxruntime's own choice. ``tf32`` says whether float32 products on CUDA
    were rounded to TF32 (onnxruntime's default); None on the CPU. ``batch`` is the first axis of
    the first input.
    """

    provider: str
    onnxruntime: str
    threads: int | None
    tf32: bool | None
    batch: int
    repeats: int
    warmup: int
    graphs: tuple[GraphTiming, ...]

    def to_json(self) -> str:
        """The result as indented JSON."""
        return json.dumps(asdict(self), indent=2)


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


def bench(
    paths: Mapping[str, str | os.PathLike[str]],
    inputs: Mapping[str, Array],
    provider: str = "auto",
    threads: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
) -> BenchResult:
    """Time the graphs ``paths`` (name -> file; the first is the reference) on the same ``inputs``.

    Raises ProviderError, GraphError and InputsError.
    """
    timed = time_runs(list(paths.values()), inputs, provider, threads, repeats, warmup)
    graphs = []
    for i, (name, path) in enumerate(paths.items()):
        median, p10, p90, p99 = np.percentile(timed.seconds[:, i], [50, 10, 90, 99])
        footprint = measure_footprint(path, timed.feeds[i], provider, threads)
        graphs.append(
            GraphTiming(
                name=name,
                path=os.fspath(path),
                median_ms=float(median * 1e3),
                p10_ms=float(p10 * 1e3),
                p90_ms=float(p90 * 1e3),
                p99_ms=float(p99 * 1e3),
                samples_per_s=float(timed.batch / median),
                latency_ratio=float(timed.ratios[i]),
                load_s=footprint.load_s,
                resident_mb=footprint.resident_mb,
                file_bytes=graph_bytes(path),
            )
        )
    return BenchResult(
        provider=timed.provider,
        onnxruntime=ort_version(),
        threads=threads,
        tf32=timed.tf32,
        batch=timed.batch,
        repeats=repeats,
        warmup=warmup,
        graphs=tuple(graphs),
    )


def time_runs(
    paths: Sequence[str | os.PathLike[str]],
    inputs: Mapping[str, Array],
    provider: str = "auto",
    threads: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
) -> TimedRuns:
    """Time the graphs at ``paths`` (the first is the reference) in turn on the same ``inputs``.

    Their sessions are closed on return, so that they do not weigh on what is measured next. Raises
    ProviderError, GraphError and InputsError.
    """
    if not paths or repeats < 1 or warmup < 0:
        raise InputsError(
            "expected at least one graph, repeats >= 1 and warmup >= 0, found "
            f"{len(paths)} graphs, repeats = {repeats} and warmup = {warmup}"
        )
    sessions = [open_session(path, provider, threads=threads) for path in paths]
    actual = provider_of(sessions[0])
    feeds = [graph_inputs(session, inputs) for session in sessions]
    calls = [
        BoundCall(session, own, "cuda") if actual == "cuda" else _call(session, own)
        for session, own in zip(sessions, feeds, strict=True)
    ]
    return TimedRuns(
        provider=actual,
        tf32=_tf32(sessions[0]) if actual == "cuda" else None,
        batch=_batch(feeds[0]),
        feeds=tuple(feeds),
        seconds=_interleaved(calls, repeats, warmup),
    )


def graph_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of an ONNX file and of the external data files that it names.

    A tensor names its file as the protobuf pair {key: "location", value: NAME}; these bytes are
    searched for, which needs no ONNX package and no parsing.
    """
    graph = Path(path)
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        named = {
            content[found.end() : found.end() + found.group(1)[0]].decode("utf-8", "replace")
            for found in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])", content)
        }
    beside = [graph.parent / name for name in named]
    return graph.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())


def _interleaved(calls: list[Callable[[], Any]], repeats: int, warmup: int) -> Any:
    """Seconds [repeats, graphs]; the order turns around from round to round."""
    for call in calls:
        for _ in range(warmup):
            call()
    seconds = np.empty((repeats, len(calls)))
    order = list(range(len(calls)))
    for turn in range(repeats):
        for i in order if turn % 2 == 0 else reversed(order):
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
        from onnxruntime import OrtValue

        outputs = run(session, feeds)
        self._session, self._binding = session, session.io_binding()
        self._values = []
        for name, array in feeds.items():
            self._values.append(OrtValue.ortvalue_from_numpy(array, device, 0))
            self._binding.bind_ortvalue_input(name, self._values[-1])
        for name, array in outputs.items():
            self._values.append(OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, device, 0))
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
