"""What the figures show, read from their axes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svd2onnx.cli.plots import draw_latency, draw_spectra, draw_sweep
from svd2onnx.study.inspection import LayerInspection, Spectrum
from svd2onnx.study.points import Point, Setting, Sweep
from svd2onnx_runtime import BatchTiming, BenchedGraph, BenchResult, Footprint, GraphTiming, Roofline

pytest.importorskip("matplotlib")
Drawn = Callable[..., Any]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Drawn]:
    """Draws by a function of this project; gives the axes, which would be closed."""
    from matplotlib import pyplot

    close = pyplot.close
    monkeypatch.setattr(pyplot, "close", lambda figure: None)

    def draw(function: Callable[..., None], *arguments: object, **options: object) -> Any:
        function(*arguments, tmp_path / "plot.png", **options)
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        return pyplot.gcf().axes[0]

    yield draw
    close("all")


def sweep_of(top1: dict[str, float], metric: str = "top1") -> Sweep:
    settings = {
        "float": Setting("float"),
        "plain": Setting("quantize", 8),
        "article": Setting("svd", 4, 0.1),
        "again": Setting("svd", 4, 0.1, 1),
        "planned": Setting("planned", value=0.2),
        "retrained": Setting("retrained", value=0.2),
    }
    points = (
        Point(settings[name], (i + 1) * 100_000, metric={metric: value}, fidelity=0.99)
        for i, (name, value) in enumerate(top1.items())
    )
    return Sweep("models/net.py", "kl", tuple(points))


ALL = {
    "float": 0.9277,
    "plain": 0.9276,
    "article": 0.927,
    "again": 0.928,
    "planned": 0.9278,
    "retrained": 0.9275,
}


def containers(axes: Any) -> dict[str, Any]:
    return {own.get_label(): own for own in axes.containers}


def test_one_image_in_a_thousand_is_no_cliff(drawn: Drawn) -> None:
    low, high = drawn(draw_sweep, sweep_of(ALL), metric="top1").get_ylim()
    assert high - low >= 0.046
    assert low < 0.927 < 0.928 < high
    low, high = drawn(draw_sweep, sweep_of({**ALL, "article": 0.2}), metric="top1").get_ylim()
    assert low < 0.2, "what is really lost is shown"


@pytest.mark.parametrize(
    ("worst", "metric", "scale"),
    [(0.001, "top1", "linear"), (9000.0, "perplexity", "log"), (90.0, "perplexity", "linear")],
)
def test_logarithms_are_for_perplexities_and_not_for_shares(
    drawn: Drawn, worst: float, metric: str, scale: str
) -> None:
    axes = drawn(draw_sweep, sweep_of({**ALL, "article": worst}, metric), metric=metric)
    assert axes.get_yscale() == scale


def test_curves_differ_in_colour_and_mark_and_the_planned_one_stands_out(drawn: Drawn) -> None:
    axes = drawn(draw_sweep, sweep_of(ALL), metric="top1")
    lines = {name: own.lines[0] for name, own in containers(axes).items()}
    assert set(lines) == {
        "plain quantization, 8 bits",
        "article's method (SVD), 4 bits",
        "svd2onnx, planned",
        "svd2onnx, retrained",
    }
    assert len({line.get_color() for line in lines.values()}) == len(lines)
    assert len({line.get_marker() for line in lines.values()}) == len(lines)
    planned = lines.pop("svd2onnx, planned")
    joined = [line for line in lines.values() if line.get_linestyle() != "None"]
    assert all(planned.get_linewidth() > line.get_linewidth() for line in joined)
    assert all(planned.get_zorder() > line.get_zorder() for line in joined)


def test_axes_have_units_and_bars_are_explained_where_there_are_any(drawn: Drawn) -> None:
    axes = drawn(draw_sweep, sweep_of(ALL))
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "File size (MB)",
        "Fidelity (kl; 1 is a perfect copy)",
    )
    assert "standard deviation" not in axes.get_title(), "fidelities are all the same"
    axes = drawn(draw_sweep, sweep_of(ALL), metric="top1")
    assert "bars: standard deviation over draws" in axes.get_title()
    (bars,) = containers(axes)["article's method (SVD), 4 bits"].lines[2]
    (low, high) = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 0.001 / 2**0.5)


def test_sizes_are_named_even_if_all_are_close(drawn: Drawn) -> None:
    axes = drawn(draw_sweep, sweep_of({"float": 0.9, "plain": 0.9, "planned": 0.9}), metric="top1")
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 3


def bench_result() -> BenchResult:
    footprint = Footprint(0.1, None, None, None, None, None)
    names = ("reference", "graph", "other")
    graphs = tuple(BenchedGraph(name, f"{name}.onnx", 1000, footprint, ()) for name in names)

    def timing(batch: int, past: int) -> BatchTiming:
        own = (
            GraphTiming(n, 10.0, 9.0, 14.0, 100.0, r, 1.0) for n, r in zip(names, (1, 0.5, 0.7), strict=True)
        )
        return BatchTiming(batch, tuple(own), past)

    batches = (timing(1, 0), timing(8, 0), timing(1, 32), timing(8, 32))
    return BenchResult("cpu", "CPU", "1.31", 1, None, 50, 5, Roofline(1e9, {"float32": 1e9}), graphs, batches)


def test_latencies_have_bars_of_their_percentiles(drawn: Drawn) -> None:
    axes = drawn(draw_latency, bench_result())
    own = containers(axes)
    assert set(own) == {
        f"{name}{past}" for name in ("reference", "graph", "other") for past in ("", ", one token after 32")
    }
    graph = own["graph"]
    assert list(graph.lines[0].get_ydata()) == [0.5, 0.5]
    (bars,) = graph.lines[2]
    assert list(bars.get_segments()[0][:, 1]) == pytest.approx([0.45, 0.7])
    assert axes.get_ylabel() == "Latency (times reference's)"
    assert "10th to 95th percentile" in axes.get_title()
    assert own["graph, one token after 32"].lines[0].get_linestyle() == "--"
    assert len({(o.lines[0].get_color(), o.lines[0].get_marker()) for o in own.values()}) == 3
    places = [o.lines[0].get_xdata()[0] for name, o in own.items() if "token" not in name]
    assert len(set(places)) == 3, "bars do not cover bars"


def test_spectra_are_shares_of_the_full_rank_and_the_largest_value(drawn: Drawn) -> None:
    layer = LayerInspection("a", "linear", (4, 4), 64, Spectrum((4.0, 2.0, 1.0, 0.5), (2, 3)))
    axes = drawn(draw_spectra, [layer, layer])
    assert list(axes.lines[0].get_ydata()) == [1.0, 0.5, 0.25, 0.125]
    assert list(axes.lines[0].get_xdata()) == [0.25, 0.5, 0.75, 1.0]
    assert axes.get_xlabel() == "Rank (share of full rank)"
    assert axes.get_ylabel() == "Singular value (relative to the largest)"
