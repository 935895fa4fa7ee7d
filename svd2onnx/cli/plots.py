"""Benchmarks and sweeps as pictures; matplotlib comes with the extra "plot"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from svd2onnx.study.inspection import LayerInspection
from svd2onnx.study.points import Point, Sweep
from svd2onnx.values.errors import OutputError
from svd2onnx_runtime import BenchResult

_WIDE = 100
"""Values of a sweep that differ by a larger factor, as perplexities do, are drawn by their logarithms."""


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
    """Write a PNG with the latency ratio to the first graph against the batch, one line for each graph.

    What was timed on single tokens, after a past, has a dashed line of its own.
    """
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(8, 5), constrained_layout=True)
    batches = sorted({timing.batch for timing in result.batches})
    for past in sorted({timing.past for timing in result.batches}):
        timings = [timing for timing in result.batches if timing.past == past]
        for i, graph in enumerate(result.graphs):
            axes.plot(
                [timing.batch for timing in timings],
                [timing.graphs[i].latency_ratio for timing in timings],
                "--" if past else "-",
                marker="o",
                color=f"C{i}",
                label=f"{graph.name}, a token after {past}" if past else graph.name,
            )
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


def draw_sweep(sweep: Sweep, path: Path, metric: str | None = None) -> None:
    """Write a PNG in the article's form: size in bytes against ``metric``, or fidelity where that is None.

    Plain quantization is a large dot for each width, the article's curves are dashed, with the spread over
    draws of data as bars, and the planned and the retrained ones are drawn through.
    """
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(8, 5.5), constrained_layout=True)
    curves: dict[str, list[Point]] = defaultdict(list)
    for point in sweep.points:
        if not point.failure:
            curves[point.setting.curve].append(point)
    heights: list[float] = []
    for i, (name, points) in enumerate(curves.items()):
        x, y, spread = _curve(points, metric)
        heights += y
        series, color = points[0].setting.series, f"C{i}"
        if series == "float":
            axes.axhline(y[0], color="gray", linewidth=1, label=f"float32, {x[0]:.1f} MB")
        elif series == "quantize":
            axes.plot(x, y, "o", markersize=12, color=color, label=name)
        else:
            style = "--" if series == "svd" else "-"
            axes.errorbar(x, y, spread, linestyle=style, marker=".", capsize=3, color=color, label=name)
    axes.set_xscale("log")
    if min(heights, default=0.0) > 0 and max(heights) > _WIDE * min(heights):
        axes.set_yscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter("{x:g}")
    axes.set_xlabel("file, MB")
    axes.set_ylabel(metric or f"fidelity ({sweep.objective})")
    axes.set_title(Path(sweep.source).stem)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, format="png", dpi=150)
    plot.close(figure)


def draw_spectra(layers: Sequence[LayerInspection], path: Path) -> None:
    """Write a PNG with the singular values of every layer: of weights, and of weights times their inputs.

    Raises:
        OutputError: no layer has a spectrum.
    """
    own = [layer.spectrum for layer in layers if layer.spectrum]
    used = [layer.used_spectrum for layer in layers if layer.used_spectrum]
    if not own:
        raise OutputError(f"there is no spectrum to plot: none of the {len(layers)} layers has one")
    plot = pyplot()
    panels = {"weights": own, "weights times their inputs": used} if used else {"weights": own}
    figure, row = plot.subplots(
        1, len(panels), figsize=(6 * len(panels), 4.5), sharey=True, squeeze=False, constrained_layout=True
    )
    colors = plot.colormaps["viridis"]
    for axes, (title, spectra) in zip(row[0], panels.items(), strict=True):
        for i, spectrum in enumerate(spectra):
            values = [value / (spectrum.values[0] or 1.0) for value in spectrum.values]
            places = [(place + 1) / len(values) for place in range(len(values))]
            axes.plot(places, values, color=colors(i / max(len(spectra) - 1, 1)), linewidth=1)
        axes.set_title(title)
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.2)
        axes.set_xlabel("rank, of the full one")
        axes.grid(alpha=0.3)
    row[0][0].set_ylabel("singular value, of the largest")
    scale = plot.cm.ScalarMappable(plot.Normalize(1, max(len(own), 2)), colors)
    figure.colorbar(scale, ax=row[0].tolist(), label="layer", ticks=plot.MaxNLocator(integer=True))
    figure.savefig(path, format="png", dpi=150)
    plot.close(figure)


def _curve(points: list[Point], metric: str | None) -> tuple[list[float], list[float], list[float]]:
    """Sizes in MB, means and standard deviations over the draws of each setting, by size."""
    same: dict[tuple[int, float], list[Point]] = defaultdict(list)
    for point in points:
        same[point.setting.bits, point.setting.value].append(point)
    rows = []
    for group in same.values():
        values = [point.metric[metric] if metric else point.fidelity for point in group]
        size = fmean(point.file_bytes for point in group) / 1e6
        rows.append((size, fmean(values), stdev(values) if len(values) > 1 else 0.0))
    x, y, spread = zip(*sorted(rows), strict=True)
    return list(x), list(y), list(spread)
