"""The results for people: a plot of size against error, and a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row

_MARKERS = "osD^v<>Pp*Xhd"


def draw(rows: Sequence[Row], run: dict[str, Any], path: Path) -> None:
    """Draw one line for each contender, its points by size; svd2onnx stands out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 6.5), constrained_layout=True)
    named = groupby((row for row in rows if not row.failure), key=lambda row: row.contender)
    for index, (name, group) in enumerate(named):
        points = sorted((row.bits_per_weight or 0.0, row.deployed or 0.0) for row in group)
        own = name.startswith("svd2onnx")
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            marker=_MARKERS[index % len(_MARKERS)],
            color=None if not own or "svd" in name.split()[1] else "black",
            linewidth=2 if own else 0.8,
            markersize=6 if own else 5,
        )
    axes.set_yscale("log")
    axes.set_xlabel("bits per Linear weight (all bytes of the file but the float32 rest)")
    axes.set_ylabel("mean error, default session on the CPU")
    axes.set_title(f"{run['source']}: embeddings float32, {run['calibration_samples']} calibration samples")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def markdown(rows: Sequence[Row]) -> str:
    """The measured rows as a table, by size, and the failures below it with their reasons."""
    lines = [
        "| contender | setting | bits per weight | file, bytes | error, strict | error, deployed | metric |",
        "|---|---|---|---|---|---|---|",
    ]
    measured = [row for row in rows if not row.failure]
    for row in sorted(measured, key=lambda row: row.bits_per_weight or 0.0):
        metric = "" if row.metric is None else f"{row.metric:.4f}"
        lines.append(
            f"| {row.contender} | {row.setting} | {row.bits_per_weight:.3f} | {row.file_bytes:,} | "
            f"{row.strict:.5f} | {row.deployed:.5f} +- {row.standard_error or 0.0:.5f} | {metric} |"
        )
    failures = [f"- {row.contender}, {row.setting}: {row.failure}" for row in rows if row.failure]
    return "\n".join([*lines, *(["", "Failed:", "", *failures] if failures else [])])
