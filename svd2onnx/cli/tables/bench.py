"""What a benchmark measured: times, and what loading costs."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from svd2onnx.cli.tables.layout import table, threads
from svd2onnx.reporting.wording import size
from svd2onnx_runtime import BenchResult


def bench_tables(result: BenchResult) -> Iterator[RenderableType]:
    """Times of every graph, then what loading it costs, then what a GPU left to the CPU."""
    yield _times(result)
    yield ""
    yield _footprints(result)
    if result.provider == "cuda":
        for graph in result.graphs:
            if graph.elsewhere:
                yield f"not on the GPU: {graph.name}: {', '.join(graph.elsewhere)}"


def _times(result: BenchResult) -> Table:
    """One line for each batch and graph: how fast, beside the reference and beside the machine's limit."""
    roofline = result.roofline
    rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in roofline.operations_per_s.items())
    made = table(
        *("batch", "graph", "median ms", "p95 ms", "samples/s", "ratio", "limit ms", "x limit"),
        left=2,
        title=f"{result.device} ({_conditions(result)})",
        caption=f"limit: {roofline.bytes_per_s / 1e9:,.1f} GB/s; 10^9 operations a second: {rates}",
    )
    for batch in result.batches:
        for graph in batch.graphs:
            made.add_row(
                f"{batch.batch}, a token after {batch.past}" if batch.past else str(batch.batch),
                graph.name,
                f"{graph.median_ms:.2f}",
                f"{graph.p95_ms:.2f}",
                f"{graph.samples_per_s:.1f}",
                f"{graph.latency_ratio:.2f}",
                f"{graph.limit_ms:.2f}",
                f"{graph.median_ms / graph.limit_ms:.1f}",
            )
    return made


def _footprints(result: BenchResult) -> Table:
    """One line for each graph: its file, and what loading it and the first run of the first batch cost."""
    on_gpu = result.provider == "cuda"
    made = table(
        *("graph", "file", "load s", "ratio", "peak MB, load", "x file", "peak MB, run"),
        *(("GPU MB, load", "GPU MB, run") if on_gpu else ()),
    )
    first_s = result.graphs[0].footprint.load_s
    for graph in result.graphs:
        own = graph.footprint
        kept = "" if own.load_peak_mb is None else f"{own.load_peak_mb * 1e6 / graph.file_bytes:.1f}"
        made.add_row(
            graph.name,
            size(graph.file_bytes),
            f"{own.load_s:.2f}",
            f"{own.load_s / first_s:.2f}",
            _mb(own.load_peak_mb),
            kept,
            _mb(own.run_peak_mb),
            *((_mb(own.gpu_load_mb), _mb(own.gpu_run_mb)) if on_gpu else ()),
        )
    return made


def _conditions(result: BenchResult) -> str:
    tf32 = "" if result.tf32 is None else f", TF32 {'on' if result.tf32 else 'off'}"
    return f"{result.provider}, {threads(result.threads)}{tf32}, onnxruntime {result.onnxruntime}"


def _mb(count: float | None) -> str:
    return "" if count is None else f"{count:.0f}"
