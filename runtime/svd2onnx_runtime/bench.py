"""Latency, throughput, load time, memory and size of graphs, side by side on one provider.

Latencies are those of ``svd2onnx_runtime.timing``: the graphs take turns in one process. Each stands
beside the least time that its work takes on this machine (``svd2onnx_runtime.roofline``), and what
loading costs is measured in processes of their own (``svd2onnx_runtime.memory``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from svd2onnx_runtime.errors import InputsError, naming
from svd2onnx_runtime.external import graph_bytes
from svd2onnx_runtime.machine import device_name
from svd2onnx_runtime.memory import Footprint, measure_footprint
from svd2onnx_runtime.past import length_of
from svd2onnx_runtime.roofline import Roofline, measure_roofline
from svd2onnx_runtime.session import Array, ort_version
from svd2onnx_runtime.timing import TimedRuns, time_runs
from svd2onnx_runtime.work import count_work


@dataclass(frozen=True)
class BenchedGraph:
    """One graph: what it occupies on disk, and what loading it and a first run cost.

    ``file_bytes`` includes external data. ``elsewhere`` names the operators that did not run on the
    provider of the benchmark.
    """

    name: str
    path: str
    file_bytes: int
    footprint: Footprint
    elsewhere: tuple[str, ...]


@dataclass(frozen=True)
class GraphTiming:
    """One graph at one batch: latencies of one run in ms, and samples per second at the median.

    ``latency_ratio`` is to the first graph: below 1 is faster. ``limit_ms`` is the least time that
    the graph's work takes on this machine.
    """

    name: str
    median_ms: float
    p10_ms: float
    p95_ms: float
    samples_per_s: float
    latency_ratio: float
    limit_ms: float


@dataclass(frozen=True)
class BatchTiming:
    """All graphs at one batch, which is the first axis of the first input.

    ``past`` is the length of the keys and values that they took; 0 for graphs without.
    """

    batch: int
    graphs: tuple[GraphTiming, ...]
    past: int = 0


@dataclass(frozen=True)
class BenchResult:
    """All graphs of one benchmark, the reference first, and the conditions they shared.

    ``device`` is the name of the processor or the GPU. ``threads`` None is onnxruntime's own choice.
    ``tf32`` says whether float32 products on CUDA were rounded to TF32 (onnxruntime's default);
    None on the CPU. The footprints are those of the first batch.
    """

    provider: str
    device: str
    onnxruntime: str
    threads: int | None
    tf32: bool | None
    repeats: int
    warmup: int
    roofline: Roofline
    graphs: tuple[BenchedGraph, ...]
    batches: tuple[BatchTiming, ...]

    def to_json(self) -> str:
        """The result as indented JSON."""
        return json.dumps(asdict(self), indent=2)


def bench(
    paths: Mapping[str, str | os.PathLike[str]],
    batches: Sequence[Mapping[str, Array]],
    provider: str = "auto",
    threads: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
) -> BenchResult:
    """Time the graphs ``paths`` (name -> file; the first is the reference) on the same inputs.

    ``batches`` are the inputs, one after the other. Raises ProviderError, GraphError and InputsError.
    """
    *_, result = bench_by_batch(paths, batches, provider, threads, repeats, warmup)
    return result


def bench_by_batch(
    paths: Mapping[str, str | os.PathLike[str]],
    batches: Sequence[Mapping[str, Array]],
    provider: str = "auto",
    threads: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
) -> Iterator[BenchResult]:
    """``bench``, giving the result so far after each batch, for whoever may be cut short."""
    if not batches:
        raise InputsError("expected at least one batch of inputs to time the graphs on, found none")
    roofline: Roofline | None = None
    graphs: tuple[BenchedGraph, ...] = ()
    timings: tuple[BatchTiming, ...] = ()
    for inputs in batches:
        timed = time_runs(list(paths.values()), inputs, provider, threads, repeats=repeats, warmup=warmup)
        work = []
        for path, feeds in zip(paths.values(), timed.feeds, strict=True):
            with naming(path):
                work.append(count_work(path, feeds, provider, threads))
        roofline = roofline or measure_roofline(provider, threads)
        graphs = graphs or tuple(
            BenchedGraph(
                name=name,
                path=os.fspath(path),
                file_bytes=graph_bytes(path),
                footprint=measure_footprint(path, feeds, provider, threads),
                elsewhere=own.elsewhere,
            )
            for (name, path), feeds, own in zip(paths.items(), timed.feeds, work, strict=True)
        )
        limits = [roofline.limit_s(own) for own in work]
        past = length_of(timed.feeds[0])
        timings += (BatchTiming(timed.batch, tuple(_timings(paths, timed, limits)), past),)
        yield BenchResult(
            provider=timed.provider,
            device=device_name(timed.provider),
            onnxruntime=ort_version(),
            threads=threads,
            tf32=timed.tf32,
            repeats=repeats,
            warmup=warmup,
            roofline=roofline,
            graphs=graphs,
            batches=timings,
        )


def _timings(names: Iterable[str], timed: TimedRuns, limits_s: Sequence[float]) -> Iterator[GraphTiming]:
    for i, name in enumerate(names):
        median, p10, p95 = np.percentile(timed.seconds[:, i], [50, 10, 95])
        yield GraphTiming(
            name=name,
            median_ms=float(median * 1e3),
            p10_ms=float(p10 * 1e3),
            p95_ms=float(p95 * 1e3),
            samples_per_s=float(timed.batch / median),
            latency_ratio=float(timed.ratios[i]),
            limit_ms=limits_s[i] * 1e3,
        )
