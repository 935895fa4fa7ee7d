"""The figures are drawn from the tables below them: all of their rows are read, as what they are."""

import re
from statistics import fmean

import pytest

from docs.draw_figures import DOCS, FRONTIERS, STUDIES, float_bytes, frontier_of, sweep_of, table_below


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_sweep_is_drawn(name: str) -> None:
    rows = table_below((DOCS / "study.md").read_text(), f"study-{name}.png")
    points = sweep_of(name).points
    metric = STUDIES[name][1]
    means: dict[tuple[object, ...], list[float]] = {}
    for point in points:
        own = point.setting
        value = point.metric[metric] if metric else point.fidelity
        means.setdefault((own.series, own.bits, own.value, point.file_bytes), []).append(value)
    assert len(means) == len(rows)
    for row, values in zip(rows, means.values(), strict=True):
        written = float(row[4].split()[0]) if metric else 1 - float(row[3])
        assert fmean(values) == pytest.approx(written, abs=2e-4)
    assert {point.setting.series for point in points} >= {"float", "quantize", "svd", "planned"}


def test_the_spread_over_draws_is_that_of_the_table() -> None:
    draws = [p.metric["top1"] for p in sweep_of("resnet20").points if p.setting.value == 0.6]
    assert sorted(round(own, 3) for own in draws) == [0.360, 0.368, 0.368, 0.424, 0.434, 0.434]


@pytest.mark.parametrize("name", FRONTIERS)
def test_every_row_of_a_frontier_is_drawn(name: str) -> None:
    text = (DOCS / "frontier.md").read_text()
    rows = frontier_of(name)
    assert len(rows) == len(table_below(text, f"frontier-{name}.png"))
    assert all(row.strict and row.standard_error is not None for row in rows)
    size = float_bytes(rows, int(str(FRONTIERS[name]["linear_weights"])))
    assert size == pytest.approx({"minilm": 90.3e6, "smollm2": 538.2e6}[name], rel=2e-3)


def test_every_figure_is_in_a_document() -> None:
    figures = {f"study-{name}.png" for name in STUDIES} | {f"frontier-{name}.png" for name in FRONTIERS}
    text = "".join((DOCS / name).read_text() for name in ("study.md", "frontier.md"))
    assert figures == set(re.findall(r"\]\(([a-z0-9_-]+\.png)\)", text))
    assert figures == {path.name for path in DOCS.glob("*.png")}
