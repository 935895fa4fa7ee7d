"""The results for people: a plot of size against error, and a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row

_MARKERS = "osD^v<>Pp*Xhd"
_WIDEST = 10.0  # bits a weight on the plot: plain SVD goes on to 16, and is in the table


def draw(rows: Sequence[Row], run: dict[str, Any], path: Path) -> None:
    """Draw strict error against size, one line for each contender; svd2onnx stands out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 6.5), constrained_layout=True)
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        bits, error = row.bits_per_weight, row.strict
        if bits is not None and error is not None and bits <= _WIDEST:
            lines.setdefault(row.contender, []).append((bits, error))
    for index, (name, points) in enumerate(lines.items()):
        own = name.startswith("svd2onnx")
        axes.plot(
            *zip(*sorted(points), strict=True),
            label=name,
            marker=_MARKERS[index % len(_MARKERS)],
            color=None if not own or "svd" in name.split()[1] else "black",
            linewidth=2 if own else 0.8,
            markersize=6 if own else 5,
        )
    weights = run["linear_weights"]
    rest = run["float_bytes"] - 4 * weights  # what every file holds besides its Linears
    megabytes = (lambda bits: (rest + bits * weights / 8) / 1e6, lambda mb: (mb * 1e6 - rest) * 8 / weights)
    axes.secondary_xaxis("top", functions=megabytes).set_xlabel("file, MB")
    axes.set_yscale("log")
    axes.set_xlabel("bits per Linear weight (all bytes of the file but the float32 rest)")
    axes.set_ylabel("mean error, strict session (float32 arithmetic)")
    axes.set_title(_title(run), fontsize=10)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def markdown(rows: Sequence[Row], run: dict[str, Any]) -> str:
    """The measured rows as a table, by size, and the failures below it with their reasons."""
    reference = run.get("float_metric")
    lines = [
        _title(run) + ("" if reference is None else f"; metric of the float32 graph: {reference:.4f}"),
        "",
        "| contender | setting | bits | bytes | error, strict | predicted | error, deployed | metric |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = [row for row in rows if not row.failure]
    for row in sorted(measured, key=lambda row: row.bits_per_weight or 0.0):
        metric = "" if row.metric is None else f"{row.metric:.4f}"
        predicted = "" if row.predicted is None else f"{row.predicted:.5f}"
        name = f"**{row.contender}**" if row.contender.startswith("svd2onnx") else row.contender
        lines.append(
            f"| {name} | {row.setting} | {row.bits_per_weight:.3f} | {row.file_bytes:,} | "
            f"{row.strict:.5f} +- {row.standard_error or 0.0:.5f} | {predicted} | "
            f"{row.deployed:.5f} | {metric} |"
        )
    failures = [f"- {row.contender}, {row.setting}: {row.failure}" for row in rows if row.failure]
    return "\n".join([*lines, *(["", "Failed:", "", *failures] if failures else [])])


def _title(run: dict[str, Any]) -> str:
    remark = f" ({run['remark']})" if run.get("remark") else ""
    samples = run["calibration_samples"]
    return f"{run['source']}{remark}: embeddings float32, {samples} calibration samples"
