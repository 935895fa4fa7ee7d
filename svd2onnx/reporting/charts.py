"""Size against fidelity as a picture: where its points, lines and ticks are, in pixels.

Both axes are logarithmic. The upright one counts nines, -log10(1 - fidelity): 1 is a fidelity of 0.9, 2 is
0.99. It always reaches down to 0.99, so that files that are all nearly perfect look so. The float32 file, of
fidelity 1, is a line on the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from svd2onnx.reporting.report import CompressionReport, SizePoint
from svd2onnx_runtime import EvaluationResult, fidelity

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 30, 50
_TICK_GAP = 46
MARK_RADIUS = 7
"""Of the chosen file's."""
_MOST_NINES = 6
_LOWEST_NINES = 2
_LEAST_FIDELITY = 0.5
"""Uniform quantization that is worse than this is no reason to show so much of the axis."""


@dataclass(frozen=True)
class Tick:
    """A label beside an axis, ``at`` pixels along it."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A point, what it says beside it (maybe nothing), and what it says when it is pointed at."""

    x: float
    y: float
    label: str
    title: str


@dataclass(frozen=True)
class SizeChart:
    """The picture of one width; ``line`` is a polyline's points, through what the planner could give.

    ``spread`` are the heights of the measured fidelity one standard error higher and lower, None where
    there is none or it is smaller than the mark.
    """

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line: str
    uniform: tuple[Mark, ...]
    chosen: Mark
    spread: tuple[float, float] | None
    predicted: Mark | None
    original: float


def size_chart(report: CompressionReport, width: int, height: int) -> SizeChart | None:
    """The picture of ``report``; None where nothing was planned."""
    if not report.curve:
        return None
    objective = report.deployed.objective

    def nines(error: float) -> float:
        return min(_nines(fidelity(objective, error)), _MOST_NINES)

    chosen = min(_nines(report.deployed.fidelity), _MOST_NINES)
    predicted = None if report.predicted_error is None else nines(report.predicted_error)
    uniform = [
        p for p in report.curve if p.form and fidelity(objective, p.predicted_error) >= _LEAST_FIDELITY
    ]
    marked = [
        chosen,
        *(nines(p.predicted_error) for p in uniform),
        *([] if predicted is None else [predicted]),
    ]
    low = min(math.floor(min(marked)), _LOWEST_NINES)
    high = min(math.ceil(max(marked) + 1e-9), _MOST_NINES)
    planned = [p for p in report.curve if not p.form and low <= nines(p.predicted_error) <= high]
    # Layers that stay float lose nothing: of the plans at the end of the axis the smallest is enough.
    planned = [p for i, p in enumerate(planned) if i == 0 or nines(planned[i - 1].predicted_error) < high]
    sizes = [report.file_bytes, report.float_bytes, *(p.file_bytes for p in (*planned, *uniform))]
    first, last = math.log(max(min(sizes), 1) * 0.94), math.log(max(sizes) * 1.06)

    def x(count: float) -> float:
        share = (math.log(max(count, 1)) - first) / (last - first)
        return round(_LEFT + share * (width - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        value = min(max(value, low), high)
        return round(height - _BOTTOM - (value - low) / (high - low) * (height - _TOP - _BOTTOM), 1)

    scale, unit = (1e3, "kB") if report.float_bytes < 2e6 else (1e6, "MB")
    in_axis = math.exp(first) / scale, math.exp(last) / scale
    return SizeChart(
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        x_label=f"File size ({unit})",
        y_label=f"Fidelity ({objective})",
        x_ticks=_apart([Tick(x(value * scale), f"{value:g}") for value in _round_numbers(*in_axis)]),
        y_ticks=tuple(Tick(y(value), label) for value, label in _fidelities(low, high)),
        line=" ".join(f"{x(p.file_bytes)},{y(nines(p.predicted_error))}" for p in planned),
        uniform=tuple(
            Mark(x(p.file_bytes), y(nines(p.predicted_error)), label, _title(p, objective))
            for p, label in zip(uniform, _labels(uniform), strict=True)
        ),
        chosen=Mark(
            x(report.file_bytes), y(chosen), "this file", f"this file, measured: {_spoken(report.deployed)}"
        ),
        spread=_spread(report.deployed, y),
        predicted=None
        if predicted is None
        else Mark(x(report.file_bytes), y(predicted), "", "this file, predicted"),
        original=x(report.float_bytes),
    )


def _nines(value: float) -> float:
    """Of a fidelity; none below 0."""
    return -math.log10(min(max(1 - value, 1e-12), 1.0))


def _spread(deployed: EvaluationResult, y: Callable[[float], float]) -> tuple[float, float] | None:
    error, off = deployed.mean_error, deployed.standard_error
    if off is None:
        return None
    higher, lower = (y(_nines(fidelity(deployed.objective, error + side * off))) for side in (-1, 1))
    return (higher, lower) if lower - higher > 2 * MARK_RADIUS else None


def _spoken(deployed: EvaluationResult) -> str:
    off = "" if deployed.standard_error is None else f", standard error {deployed.standard_error:.1g}"
    return f"{deployed.fidelity:.5f}{off}"


def _title(point: SizePoint, objective: str) -> str:
    value = fidelity(objective, point.predicted_error)
    return f"{point.form}: {point.file_bytes / 1e6:.2f} MB, predicted fidelity {value:.4f}"


def _labels(uniform: Sequence[SizePoint]) -> list[str]:
    """The bits, beside the largest of each width."""
    largest = {(p.form or "").partition("/")[0]: p for p in sorted(uniform, key=lambda p: p.file_bytes)}
    labels = {point: width for width, point in largest.items()}
    return [labels.get(point, "") for point in uniform]


def _round_numbers(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten, between."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    return [n * 10.0**power for power in powers for n in (1, 2, 5) if least <= n * 10.0**power <= most]


def _apart(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """Those that leave room for each other's labels."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= _TICK_GAP:
            kept.append(tick)
    return tuple(kept)


def _fidelities(low: int, high: int) -> list[tuple[float, str]]:
    """Nines and labels: every decade, and where those are few two between them."""
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    losses = [(n, power) for power in range(low, high + 1) for n in steps]
    found = [(power - math.log10(n), f"{1 - n * 10.0**-power:.{max(power, 0)}f}") for n, power in losses]
    return [(value, label) for value, label in found if low <= value <= high]
