"""The benchmark's rows: chosen by name and setting, kept, resumed, drawn and tabled."""

import csv
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from benchmarks import frontier
from benchmarks.contenders import Contender, contenders
from benchmarks.drawing import best, draw, look, markdown
from benchmarks.measuring import Row
from benchmarks.peers import plain_svd
from benchmarks.task import Task

RUN = {"source": "tiny.py", "calibration_samples": 16, "linear_weights": 1000, "float_bytes": 5000}
ROWS = [
    Row("b", "rank=2", bits_per_weight=4.0, file_bytes=1500, strict=0.02, deployed=0.03, metric=0.5),
    Row(
        *("svd2onnx a", "bits=8", 8.0, 2000),
        strict=0.01,
        standard_error=0.001,
        deployed=0.01,
        predicted=0.009,
    ),
    Row("b", "rank=9", failure="it left"),
    Row("b", "rank=1", bits_per_weight=2.0, file_bytes=1250, strict=0.04, deployed=0.04),
]
SHARES = (0.5, 0.25)


class Direct:
    """A worker in this process that counts."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def compress(self, task: Task, contender: Contender, output: Path) -> None:
        self.ran.append(contender.label)
        contender.run(task, output)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Direct:
    other = Direct()
    monkeypatch.setattr(frontier, "worker", lambda *limits: nullcontext(other))
    table = [Contender("plain SVD", plain_svd.compress, {"share": share}) for share in SHARES]
    monkeypatch.setattr(frontier, "contenders", lambda: table)
    monkeypatch.setattr(frontier, "draw", lambda rows, run, path: path.write_text(str(len(rows))))
    return other


def _invoke(source: Path, output: Path, *options: str) -> Any:
    samples = ["--calibration-samples", "16"]
    return CliRunner().invoke(frontier.main, [str(source), "-o", str(output), *samples, *options])


def test_run_goes_on_where_it_stopped(direct: Direct, source: Path, tmp_path: Path) -> None:
    first = _invoke(source, tmp_path, "--only", "plain SVD/share=0.25")
    assert first.exit_code == 0, first.output
    assert direct.ran == ["share=0.25"]
    again = _invoke(source, tmp_path)
    assert again.exit_code == 0, again.output
    assert direct.ran == ["share=0.25", "share=0.5"]
    assert "1/1 plain SVD, share=0.5: " in again.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    assert [row["setting"] for row in record["rows"]] == ["share=0.5", "share=0.25"]  # as in the table
    assert record["run"]["remark"] == "made by a test"
    assert record["run"]["linear_weights"] == 64 * 128 * 2
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["contender"] for row in csv.DictReader(file)] == ["plain SVD"] * 2
    assert (tmp_path / "frontier.png").read_text() == "2"


def test_fresh_measures_again(direct: Direct, source: Path, tmp_path: Path) -> None:
    for options in ((), (), ("--fresh", "--only", "*/share=0.5")):
        assert _invoke(source, tmp_path, *options).exit_code == 0
    assert direct.ran == ["share=0.5", "share=0.25", "share=0.5"]


def test_name_that_nothing_has_is_refused(direct: Direct, source: Path, tmp_path: Path) -> None:
    result = _invoke(source, tmp_path, "--only", "plain*/bits=4")
    assert result.exit_code == 1
    assert "no contender is named like plain*/bits=4" in result.output


def test_rows_of_another_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    frontier.write(tmp_path, RUN, {row.key: row for row in ROWS})
    run = {"source": "tiny.py", "calibration_samples": 16}
    assert list(frontier.known(path, run).values()) == ROWS
    assert run == RUN
    with pytest.raises(click.ClickException, match="is of another run"):
        frontier.known(path, {"calibration_samples": 32})


@pytest.mark.parametrize(
    ("only", "labels"),
    [
        ((), ["share=0.5", "share=0.25"]),
        (("plain*",), ["share=0.5", "share=0.25"]),
        (("plain SVD/*25",), ["share=0.25"]),
        (("other", "plain SVD/share=0.5"), ["share=0.5"]),
        (("share=0.5",), []),
    ],
)
def test_patterns_choose_by_name_or_name_and_setting(only: tuple[str, ...], labels: list[str]) -> None:
    table = [Contender("plain SVD", plain_svd.compress, {"share": share}) for share in SHARES]
    assert [contender.label for contender in frontier.chosen(table, only)] == labels


def test_label_leaves_out_what_the_name_says() -> None:
    assert (
        Contender("k-quant", print, {"algorithm": "k_quant", "bits": 4, "block": 32}).label
        == "bits=4 block=32"
    )
    assert Contender("rtn", print, {"algorithm": "rtn"}).label == "default"


def test_table_is_by_size_with_the_failures_below() -> None:
    lines = markdown(ROWS, RUN | {"remark": "weights of a kind", "float_metric": 0.75}).splitlines()
    assert lines[0] == (
        "tiny.py (weights of a kind): embeddings float32, 16 calibration samples; "
        "metric of the float32 graph: 0.7500"
    )
    assert lines[4:7] == [
        "| b | rank=1 | 2.000 | 1,250 | 0.04000 +- 0.00000 |  | 0.04000 |  |",
        "| b | rank=2 | 4.000 | 1,500 | 0.02000 +- 0.00000 |  | 0.03000 | 0.5000 |",
        "| **svd2onnx a** | bits=8 | 8.000 | 2,000 | 0.01000 +- 0.00100 | 0.00900 | 0.01000 |  |",
    ]
    assert lines[-1] == "- b, rank=9: it left"


def test_plot_is_drawn_from_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(ROWS, RUN, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_line_of_a_contender_joins_what_none_of_its_smaller_settings_beats() -> None:
    points = [(4.0, 0.2, 0.0), (2.0, 0.3, 0.0), (4.0, 0.1, 0.0), (5.0, 0.15, 0.0), (8.0, 0.01, 0.0)]
    assert best(points) == [(2.0, 0.3), (4.0, 0.1), (8.0, 0.01)]


def test_contenders_are_told_apart_by_colour_mark_and_line_and_ours_stands_out() -> None:
    names = list(dict.fromkeys(contender.name for contender in contenders()))
    looks = {name: look(name, names) for name in names}
    kinds = {(own["color"], own["marker"], own.get("linestyle")) for own in looks.values()}
    assert len(kinds) == len(names)
    ours = looks.pop("svd2onnx auto")
    assert all(ours["linewidth"] > own["linewidth"] for own in looks.values())
    assert all(ours["zorder"] > own["zorder"] for own in looks.values())
