"""Draws the figures of docs/study.md and docs/frontier.md from the tables below them.

    python -m docs.draw_figures

A sweep and the frontier draw their own figures when they run. This redraws all of them in one look from the
numbers that are published, so figure and table cannot disagree.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.drawing import draw
from benchmarks.frontier import in_order
from benchmarks.measuring import Row
from svd2onnx.cli.plots import draw_sweep
from svd2onnx.study.points import Point, Setting, Sweep

DOCS = Path(__file__).parent

STUDIES: dict[str, tuple[str, str | None]] = {
    "resnet20": ("kl", "top1"),
    "mobilenetv2": ("kl", "top1"),
    "fashion_vgg": ("kl", "top1"),
    "minilm": ("cosine", None),
    "smollm2": ("kl", "perplexity"),
}
"""The objective of each, and the metric that is drawn; None is fidelity."""

FRONTIERS = {
    "minilm": {
        "source": "minilm.py",
        "calibration_samples": 1536,
        "objective": "cosine",
        "linear_weights": 10_616_832,
    },
    "smollm2": {
        "source": "smollm2.py",
        "remark": "its float weights are dequantized Q4_1",
        "calibration_samples": 512,
        "objective": "kl",
        "linear_weights": 106_168_320,
    },
}
_DRAWN = re.compile(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)")


def table_below(text: str, figure: str) -> list[list[str]]:
    """The cells of the first table with sizes below ``figure``, without its head."""
    below = text[text.index(f"({figure})") :]
    for block in re.findall(r"(?:^\|.*\n)+", below, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if len(rows[0]) > 4:
            return rows[2:]
    raise ValueError(f"no table below {figure}")


def sweep_of(name: str) -> Sweep:
    """The sweep whose table stands below its figure in study.md."""
    objective, metric = STUDIES[name]
    points: list[Point] = []
    for what, size, kept, loss, value in table_below((DOCS / "study.md").read_text(), f"study-{name}.png"):
        setting = _setting(what, float(kept))
        for sample, one in enumerate(_draws(value)):
            points.append(
                Point(
                    Setting(setting.series, setting.bits, setting.value, sample),
                    file_bytes=round(float(size) * 1e6),
                    kept=float(kept),
                    fidelity=1 - float(loss),
                    mean_error=float(loss),
                    metric={metric: one} if metric else {},
                )
            )
    return Sweep(f"models/{name}.py", objective, tuple(points))


def frontier_of(name: str) -> list[Row]:
    """The rows of the table below its figure in frontier.md, in the order in which contenders compete."""
    rows: list[Row] = []
    for cells in table_below((DOCS / "frontier.md").read_text(), f"frontier-{name}.png"):
        contender, setting, bits, size, strict, _, deployed, metric = cells
        error, spread = strict.split(" +- ")
        rows.append(
            Row(
                contender.strip("*"),
                setting,
                bits_per_weight=float(bits),
                file_bytes=int(size.replace(",", "")),
                strict=float(error),
                standard_error=float(spread),
                deployed=float(deployed),
                metric=float(metric),
            )
        )
    return in_order({row.key: row for row in rows})


def float_bytes(rows: list[Row], linear_weights: int) -> int:
    """Bytes of the float32 file: those of a row, with 32 bits in the place of its bits per weight."""
    row = rows[0]
    assert row.file_bytes is not None
    assert row.bits_per_weight is not None
    return round(row.file_bytes + (32 - row.bits_per_weight) * linear_weights / 8)


def _setting(what: str, kept: float) -> Setting:
    bits = int(found[1]) if (found := re.search(r"(\d) bits", what)) else 0
    if what == "float32":
        return Setting("float")
    if what.startswith("plain"):
        return Setting("quantize", bits)
    if what.startswith("article's method"):
        epsilon = re.search(r"epsilon ([\d.]+)", what)
        return Setting("svd", bits, float(epsilon[1]) if epsilon else 0.0)
    return Setting("retrained" if "retrained" in what else "planned", value=kept)


def _draws(value: str) -> list[float]:
    """The three draws of a mean that is written with its least and its most, else the one value."""
    if not (found := _DRAWN.fullmatch(value)):
        return [float(value)]
    mean, least, most = map(float, found.groups())
    return [least, min(max(3 * mean - least - most, least), most), most]


def main() -> None:
    """Write every figure beside its document."""
    for name, (_, metric) in STUDIES.items():
        draw_sweep(sweep_of(name), DOCS / f"study-{name}.png", metric)
    for name, run in FRONTIERS.items():
        rows = frontier_of(name)
        weights = int(str(run["linear_weights"]))
        draw(rows, run | {"float_bytes": float_bytes(rows, weights)}, DOCS / f"frontier-{name}.png")


if __name__ == "__main__":
    main()
