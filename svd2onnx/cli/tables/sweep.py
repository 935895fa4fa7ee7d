"""What a sweep measured."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType

from svd2onnx.cli.tables.layout import table
from svd2onnx.reporting.wording import size
from svd2onnx.study.points import Point, Sweep


def sweep_tables(sweep: Sweep) -> Iterator[RenderableType]:
    """A row for each point, by size within each curve; below them the points that there are not, and why."""
    names = sorted({name for point in sweep.points for name in point.metric})
    rows = table(
        *("curve", "at", "file", "of float32", f"fidelity ({sweep.objective})", *names), title=sweep.source
    )
    points = sorted(sweep.points, key=lambda p: (p.setting.curve, p.file_bytes))
    for point in points:
        if not point.failure:
            metrics = (f"{point.metric[name]:.4f}" if name in point.metric else "" for name in names)
            rows.add_row(
                point.setting.curve,
                _at(point),
                size(point.file_bytes),
                f"{point.kept:.3f}",
                f"{point.fidelity:.5f}",
                *metrics,
            )
    yield rows
    for point in points:
        if point.failure:
            yield f"no point for {point.setting.curve} {_at(point)}".rstrip() + f": {point.failure}"


def _at(point: Point) -> str:
    return f"{point.setting.value:g}" if point.setting.value else ""
