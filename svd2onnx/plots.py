"""A benchmark as a picture; matplotlib comes with the extra "plot"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svd2onnx.errors import OutputError
from svd2onnx_runtime import BenchResult


def pyplot() -> Any:
    """The module ``matplotlib.pyplot``, drawing to files.

    Raises:
        OutputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise OutputError(
            "a plot needs matplotlib, which is not installed: pip install 'svd2onnx[plot]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_latency(result: BenchResult, path: Path) -> None:
    """Write a PNG with the latency ratio to the first graph against the batch, one line for each graph."""
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(8, 5), constrained_layout=True)
    batches = [timing.batch for timing in result.batches]
    for i, graph in enumerate(result.graphs):
        axes.plot(batches, [t.graphs[i].latency_ratio for t in result.batches], marker="o", label=graph.name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, map(str, batches))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch")
    axes.set_ylabel(f"latency, of that of {result.graphs[0].name}")
    axes.set_title(f"{result.device}, onnxruntime {result.onnxruntime}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=150)
    plot.close(figure)
