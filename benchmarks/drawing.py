"""The results for people: a plot of size against error, and a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row
from svd2onnx.cli.plots import pyplot
from svd2onnx.reporting.palette import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILION

_WIDEST = 10.0  # bits a weight on the plot: plain SVD goes on to 16, and is in the table
_UNITS = {"cosine": "1 - cosine similarity", "kl": "KL divergence, nats", "mse": "relative squared error"}

_OURS = {
    "svd2onnx auto": {"color": BLUE, "marker": "o", "linewidth": 3, "markersize": 7, "zorder": 4},
    "svd2onnx auto, retrained": {
        "color": VERMILION,
        "marker": "D",
        "linewidth": 2,
        "markersize": 6,
        "zorder": 3,
    },
}
_FAMILIES = {"svd2onnx": SKY, "plain": GRAY, "onnxruntime": ORANGE, "NNCF": GREEN, "onnxsim": PURPLE}
"""A colour for each tool; its methods differ by mark and line."""
_MARKERS = "s^vP*X"
_LINES = ("-", "--", ":", "-.")


def draw(rows: Sequence[Row], run: dict[str, Any], path: Path) -> None:
    """Draw strict error against size with its standard error; svd2onnx's planned curve stands out.

    Every setting is a mark; the line of a contender joins those that none of its smaller ones beats.
    """
    plot = pyplot()
    figure, axes = plot.subplots(figsize=(10, 6.5), constrained_layout=True)
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        bits, error = row.bits_per_weight, row.strict
        if bits is not None and error is not None and bits <= _WIDEST:
            lines.setdefault(row.contender, []).append((bits, error, row.standard_error or 0.0))
    for name, points in lines.items():
        own = look(name, list(lines))
        x, y, spread = zip(*sorted(points), strict=True)
        marks = {key: own[key] for key in ("color", "marker", "markersize", "zorder")}
        axes.errorbar(x, y, spread, linestyle="none", capsize=2, elinewidth=1, **marks)
        axes.plot(*zip(*best(points), strict=True), label=name, **own)
    weights = run["linear_weights"]
    rest = run["float_bytes"] - 4 * weights  # what every file holds besides its Linears
    megabytes = (lambda bits: (rest + bits * weights / 8) / 1e6, lambda mb: (mb * 1e6 - rest) * 8 / weights)
    axes.secondary_xaxis("top", functions=megabytes).set_xlabel("File size (MB)")
    axes.set_yscale("log")
    axes.set_xlabel("Size of the Linear layers (bits per weight, everything but the float32 rest counted)")
    unit = _UNITS.get(run.get("objective", ""), "")
    axes.set_ylabel(f"Mean error, strict session{f' ({unit})' if unit else ''}")
    axes.set_title(_title(run), fontsize=10)
    axes.grid(which="major", alpha=0.3)
    axes.grid(which="minor", alpha=0.1)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=150)
    plot.close(figure)


def best(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Of (bits, error, spread) those with less error than any of no more bits, by bits."""
    kept: list[tuple[float, float]] = []
    for bits, error, _ in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((bits, error))
    return kept


def look(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Colour, mark and line of the contender ``name`` among ``names``, as matplotlib takes them."""
    if name in _OURS:
        return _OURS[name]
    family = name.split()[0]
    place = [own for own in names if own.split()[0] == family and own not in _OURS].index(name)
    return {
        "color": _FAMILIES.get(family, BLACK),
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place % len(_LINES)],
        "linewidth": 1,
        "markersize": 5,
        "zorder": 2,
    }


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
