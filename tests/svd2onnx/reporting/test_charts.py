"""The points of the picture are where their sizes and fidelities are."""

import math
from dataclasses import replace

import pytest

from svd2onnx.reporting.charts import SizeChart, size_chart
from svd2onnx.reporting.report import SizePoint
from tests.svd2onnx.reports import CURVE, a_report


def chart_of(width: int = 860, **changes: object) -> SizeChart:
    chart = size_chart(a_report(**changes), width, 380)
    assert chart is not None
    return chart


def points_of(chart: SizeChart) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in chart.line.split())]


def test_nothing_planned_gives_no_picture() -> None:
    assert size_chart(a_report(curve=()), 860, 380) is None


@pytest.mark.parametrize("width", [350, 860])
def test_everything_lies_within_the_axes(width: int) -> None:
    chart = chart_of(width)
    assert chart.predicted is not None
    marks = [(mark.x, mark.y) for mark in (chart.chosen, chart.predicted, *chart.uniform)]
    for x, y in (*points_of(chart), *marks):
        assert chart.left <= x <= chart.right
        assert chart.top <= y <= chart.bottom
    assert all(chart.left <= tick.at <= chart.right for tick in chart.x_ticks)
    assert all(chart.top <= tick.at <= chart.bottom for tick in chart.y_ticks)
    gaps = [b.at - a.at for a, b in zip(chart.x_ticks, chart.x_ticks[1:], strict=False)]
    assert min(gaps) >= 40, "labels overlap"


def test_larger_is_right_and_better_is_higher() -> None:
    chart = chart_of()
    points = points_of(chart)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert chart.chosen.x < chart.original
    assert chart.predicted is not None
    assert chart.predicted.x == chart.chosen.x
    assert chart.predicted.y < chart.chosen.y, "the prediction was too good, so it is higher"


def test_axes_are_logarithmic() -> None:
    chart = chart_of()
    at = {tick.label: tick.at for tick in chart.x_ticks}
    ratio = (at["50"] - at["20"]) / (at["20"] - at["10"])
    assert ratio == pytest.approx(math.log(2.5) / math.log(2), abs=0.01)
    at = {tick.label: tick.at for tick in chart.y_ticks}
    assert at["0.99"] < at["0.9"]
    assert at["0.9"] - at["0.99"] == pytest.approx(at["0.99"] - at["0.999"], abs=0.3)
    nines = 1 + (at["0.9"] - chart.chosen.y) / (at["0.9"] - at["0.99"])
    assert nines == pytest.approx(-math.log10(1 - 0.9894), abs=0.01)


def test_uniform_quantization_is_labelled_by_its_width_and_hopeless_ones_are_left_out() -> None:
    assert [mark.label for mark in chart_of().uniform] == ["int8", "int4", ""]


def test_small_files_are_shown_in_kilobytes() -> None:
    small = [replace(point, file_bytes=point.file_bytes // 1000) for point in CURVE]
    chart = chart_of(curve=tuple(small), file_bytes=11_700, float_bytes=90_300)
    assert chart.x_label == "File size (kB)"
    assert "20" in {tick.label for tick in chart.x_ticks}


@pytest.mark.parametrize("fidelity", [1.0, 0.0, -0.7])
def test_perfect_and_hopeless_files_are_drawn_too(fidelity: float) -> None:
    deployed = replace(a_report().deployed, fidelity=fidelity)
    chart = chart_of(deployed=deployed)
    assert chart.top <= chart.chosen.y <= chart.bottom
    assert max(len(tick.label) for tick in chart.y_ticks) <= len("0.999999"), "longer ones are cut off"


def test_a_single_size_is_drawn() -> None:
    chart = chart_of(curve=(SizePoint(11_700_000, 0.01),), float_bytes=11_700_000, predicted_error=None)
    assert chart.predicted is None
    assert len(points_of(chart)) == 1


def test_the_axis_reaches_down_to_99_percent_for_files_that_lose_next_to_nothing() -> None:
    curve = tuple(SizePoint(int(1e7 * 1.3**i), 1e-6 * 0.5**i) for i in range(5))
    deployed = replace(a_report().deployed, fidelity=1 - 1e-6, mean_error=1e-6, standard_error=1e-8)
    chart = chart_of(curve=curve, deployed=deployed, predicted_error=1e-6)
    at = {tick.label: tick.at for tick in chart.y_ticks}
    assert at["0.99"] == chart.bottom
    assert chart.chosen.y < at["0.99999"]


def test_the_spread_is_drawn_where_it_is_larger_than_the_mark() -> None:
    assert chart_of().spread is None
    deployed = replace(a_report().deployed, standard_error=0.005)
    chart = chart_of(deployed=deployed)
    assert chart.spread is not None
    higher, lower = chart.spread
    assert higher < chart.chosen.y < lower
    at = {tick.label: tick.at for tick in chart.y_ticks}
    nines = 1 + (at["0.9"] - higher) / (at["0.9"] - at["0.99"])
    assert nines == pytest.approx(-math.log10(0.0106 - 0.005), abs=0.01)
    assert chart_of(deployed=replace(deployed, standard_error=None)).spread is None
