"""Benchmarks and sweeps as pictures; matplotlib comes with the extra "plot"."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from svd2onnx.reporting.palette import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILION
from svd2onnx.study.inspection import LayerInspection
from svd2onnx.study.points import Point, Setting, Sweep
from svd2onnx.values.errors import OutputError
from svd2onnx_runtime import BenchResult

_WIDE = 100
"""Values above 1 that differ by a larger factor, as perplexities do, are drawn by their logarithms."""
_LEAST_SPAN = 0.05
"""Of the largest value: an axis of top-1 spans about five points at least, so that noise is no cliff."""
_FEW_STEPS, _MANY_STEPS = (1, 2, 3, 5), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
"""Sizes named on the axis in each decade: more of them where all files are nearly of one size."""
_OURS: dict[str, dict[str, Any]] = {
    "planned": {"label": "svd2onnx, planned", "color": BLUE, "marker": "o", "linewidth": 3, "zorder": 4},
    "retrained": {
        "label": "svd2onnx, retrained",
        "color": VERMILION,
        "marker": "D",
        "linewidth": 2,
        "zorder": 3,
    },
}
_WIDTHS = {8: (PURPLE, "s"), 4: (GREEN, "^"), 2: (ORANGE, "v")}
_GRAPHS = [(GRAY, "s"), (BLUE, "o"), (VERMILION, "^"), (GREEN, "D"), (PURPLE, "v"), (ORANGE, "P"), (SKY, "X")]
"""The reference, the graph itself, and others beside them."""


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

    Bars span the 10th to the 95th percentile of a graph's runs, over the first graph's median. What was
    timed on single tokens, after a past, has a dashed line of its own.
    """
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(8, 5), constrained_layout=True)
    batches = sorted({timing.batch for timing in result.batches})
    for past in sorted({timing.past for timing in result.batches}):
        timings = [timing for timing in result.batches if timing.past == past]
        for i, graph in enumerate(result.graphs):
            color, marker = _GRAPHS[i % len(_GRAPHS)]
            own = [timing.graphs[i] for timing in timings]
            # Beside each other, else bars cover bars.
            places = [timing.batch * 2 ** (0.05 * (i - (len(result.graphs) - 1) / 2)) for timing in timings]
            axes.errorbar(
                places,
                [each.latency_ratio for each in own],
                [
                    [each.latency_ratio * max(1 - each.p10_ms / each.median_ms, 0) for each in own],
                    [each.latency_ratio * max(each.p95_ms / each.median_ms - 1, 0) for each in own],
                ],
                linestyle="--" if past else "-",
                linewidth=2.5 if i == 1 else 1.2,
                marker=marker,
                markersize=7,
                capsize=3,
                elinewidth=1,
                color=color,
                label=f"{graph.name}, one token after {past}" if past else graph.name,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, map(str, batches))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Batch size (samples)")
    axes.set_ylabel(f"Latency (times {result.graphs[0].name}'s)")
    axes.set_title(
        f"{result.device}, onnxruntime {result.onnxruntime}\nmedian; bars: 10th to 95th percentile",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=150)
    plot.close(figure)


def draw_sweep(sweep: Sweep, path: Path, metric: str | None = None) -> None:
    """Write a PNG in the article's form: size in bytes against ``metric``, or fidelity where that is None.

    Plain quantization is a large mark for each width, the article's curves are dashed in the width's colour,
    with the standard deviation over draws of data as bars, and the planned curve is drawn thick, above all
    others.
    """
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(8, 5.5), constrained_layout=True)
    curves: dict[str, list[Point]] = defaultdict(list)
    for point in sweep.points:
        if not point.failure:
            curves[point.setting.curve].append(point)
    heights: list[float] = []
    is_spread = False
    for points in curves.values():
        x, y, spread = _curve(points, metric)
        heights += y
        setting = points[0].setting
        if setting.series == "float":
            axes.axhline(y[0], color=GRAY, linewidth=1, label=f"float32, {x[0]:.1f} MB")
            continue
        error = spread if any(spread) else None
        is_spread |= error is not None
        axes.errorbar(x, y, error, capsize=3, elinewidth=1, **_look(setting))
    axes.set_xscale("log")
    _scale_heights(axes, heights)
    ticker = plot.matplotlib.ticker
    least, most = axes.get_xlim()
    steps = _FEW_STEPS if most > 6 * least else _MANY_STEPS
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=steps, numticks=30))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("File size (MB)")
    axes.set_ylabel(metric or f"Fidelity ({sweep.objective}; 1 is a perfect copy)")
    bars = "\nbars: standard deviation over draws of calibration data" if is_spread else ""
    axes.set_title(f"{Path(sweep.source).stem}{bars}", fontsize=10)
    axes.grid(alpha=0.3)
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
    panels = {"Weights": own, "Weights times their inputs": used} if used else {"Weights": own}
    figure, row = plot.subplots(
        1, len(panels), figsize=(6 * len(panels), 4.5), sharey=True, squeeze=False, constrained_layout=True
    )
    # Without its end, which is a yellow that is hard to see on white.
    colors = plot.matplotlib.colors.ListedColormap([plot.colormaps["viridis"](i) for i in range(216)])
    for axes, (title, spectra) in zip(row[0], panels.items(), strict=True):
        for i, spectrum in enumerate(spectra):
            values = [value / (spectrum.values[0] or 1.0) for value in spectrum.values]
            places = [(place + 1) / len(values) for place in range(len(values))]
            axes.plot(places, values, color=colors(i / max(len(spectra) - 1, 1)), linewidth=1)
        axes.set_title(title)
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.2)
        axes.set_xlabel("Rank (share of full rank)")
        axes.grid(alpha=0.3)
    row[0][0].set_ylabel("Singular value (relative to the largest)")
    scale = plot.cm.ScalarMappable(plot.Normalize(1, max(len(own), 2)), colors)
    figure.colorbar(
        scale, ax=row[0].tolist(), label="Layer (in network order)", ticks=plot.MaxNLocator(integer=True)
    )
    figure.savefig(path, format="png", dpi=150)
    plot.close(figure)


def _look(setting: Setting) -> dict[str, Any]:
    """Of its curve, as matplotlib takes it: a colour for each of ours, and for each width of the others."""
    if setting.series in _OURS:
        return {"markersize": 7, **_OURS[setting.series]}
    color, marker = _WIDTHS.get(setting.bits, (SKY, "P"))
    shared = {"color": color, "marker": marker}
    if setting.series == "quantize":  # a ring, through which the planned curve is seen
        ring = {"linestyle": "none", "markersize": 14, "markeredgewidth": 2.5, "markerfacecolor": "none"}
        return {**shared, **ring, "zorder": 5, "label": f"plain quantization, {setting.bits} bits"}
    dashed = {"linestyle": "--", "linewidth": 1.2, "markersize": 5, "zorder": 2}
    return {**shared, **dashed, "label": f"article's method (SVD), {setting.bits} bits"}


def _scale_heights(axes: Any, heights: Sequence[float]) -> None:
    """Logarithms for values of very different sizes; else a span that does not magnify small ones."""
    finite = [height for height in heights if math.isfinite(height)]
    if not finite:
        return
    if 0 < _WIDE * min(finite) < max(finite) and max(finite) > 1:
        axes.set_yscale("log")
        return
    low, high = axes.get_ylim()
    short = _LEAST_SPAN * max(map(abs, finite)) - (high - low)
    if short > 0:
        axes.set_ylim(low - short / 2, high + short / 2)


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
