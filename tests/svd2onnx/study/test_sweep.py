"""A sweep measures every point by onnxruntime, notes what cannot be reached, and goes on where it stopped."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from svd2onnx.cli.main import main
from svd2onnx.study.measurement import Study
from svd2onnx.study.points import Point, Setting, Sweep, wanted
from svd2onnx.study.sweep import sweep
from svd2onnx.values.errors import OutputError, PlanError
from svd2onnx.values.settings import Settings

POINTS = [
    Setting("float"),
    Setting("quantize", 8),
    Setting("quantize", 4),
    Setting("svd", 8, 0.2),
    Setting("planned", value=0.3),
    Setting("planned", value=0.001),
    Setting("retrained", value=0.3),
]
SETTINGS = Settings(provider="cpu", recover=3)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Sweep]:
    """The source, the folder and the points."""
    from tests.svd2onnx.conftest import MODEL_FILE

    folder = tmp_path_factory.mktemp("sweep")
    source = folder / "network.py"
    source.write_text(MODEL_FILE)
    return source, folder / "out", sweep(source, folder / "out", POINTS, SETTINGS)


def by_setting(result: Sweep) -> dict[Setting, Point]:
    return {point.setting: point for point in result.points}


def test_every_point_is_measured_or_says_why_not(swept: tuple[Path, Path, Sweep]) -> None:
    points = by_setting(swept[2])
    assert list(points) == POINTS
    assert "cannot be reached" in points[Setting("planned", value=0.001)].failure
    measured = [point for point in points.values() if not point.failure]
    assert len(measured) == len(POINTS) - 1
    assert points[Setting("float")].kept == 1
    assert points[Setting("float")].fidelity == pytest.approx(1)
    assert all(set(point.metric) == {"positive"} for point in measured)
    assert points[Setting("quantize", 4)].file_bytes < points[Setting("quantize", 8)].file_bytes
    assert points[Setting("quantize", 8)].mean_error < points[Setting("quantize", 4)].mean_error
    assert points[Setting("planned", value=0.3)].kept <= 0.3
    retrained, planned = (points[Setting(series, value=0.3)] for series in ("retrained", "planned"))
    assert retrained.file_bytes == planned.file_bytes
    assert points[Setting("svd", 8, 0.2)].forms


def test_what_is_there_is_not_measured_again(
    swept: tuple[Path, Path, Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder, first = swept
    measured = []

    def point(_study: object, setting: Setting) -> Point:
        measured.append(setting)
        return Point(setting, file_bytes=1)

    monkeypatch.setattr(Study, "point", point)
    more = Setting("svd", 8, 0.4)
    second = sweep(source, folder, [*POINTS, more], SETTINGS)
    assert measured == [more]
    assert second.points == (*first.points, Point(more, file_bytes=1))
    assert Sweep.read(folder / "sweep.json", str(source), "cosine") == second
    left = {path.name for path in folder.iterdir()} - {"sweep.png"}
    assert left == {"sweep.json", "sweep.csv"}


def test_the_table_has_a_row_for_each_point(swept: tuple[Path, Path, Sweep]) -> None:
    result = swept[2]
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert len(rows) == len(result.points)
    found = {(row["series"], row["bits"], row["value"]): row for row in rows}
    row = found["quantize", "4", "0.0"]
    point = by_setting(result)[Setting("quantize", 4)]
    assert int(row["file_bytes"]) == point.file_bytes
    assert float(row["positive"]) == point.metric["positive"]


def test_a_sweep_of_another_network_is_refused(swept: tuple[Path, Path, Sweep], tmp_path: Path) -> None:
    path = swept[1] / "sweep.json"
    with pytest.raises(PlanError, match=r"is a sweep of .*, not of other\.py"):
        Sweep.read(path, "other.py", "cosine")
    broken = tmp_path / "sweep.json"
    for text in ("", "{}", '{"format": "svd2onnx-sweep/1", "points": [{}]}', json.dumps([1])):
        broken.write_text(text)
        with pytest.raises(PlanError, match="is no sweep") as caught:
            Sweep.read(broken, "other.py", "cosine")
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        sweep(model_file, tmp_path / "file" / "folder", POINTS, SETTINGS)


def test_wanted_points_are_all_combinations_quick_ones_first() -> None:
    points = wanted([4, 8], [0.2, 0.1], [0.1, 0.2], samples=2, retrained=True)
    assert points[:3] == [Setting("float"), Setting("svd", 4, 0.1), Setting("svd", 4, 0.2)]
    assert points[9:11] == [Setting("quantize", 4), Setting("quantize", 8)]
    assert [p.sample for p in points if p.series == "svd"] == [0] * 4 + [1] * 4
    assert points[-4:] == [
        Setting("planned", value=0.2),
        Setting("planned", value=0.1),
        Setting("retrained", value=0.2),
        Setting("retrained", value=0.1),
    ]
    assert len(set(points)) == len(points)


def test_the_command_draws_and_prints(write_model_file: Callable[..., Path], tmp_path: Path) -> None:
    source, folder = write_model_file(), tmp_path / "out"
    options = "--bits 4 --epsilon 0.3 --epsilon 0.8 --size 0.2 --samples 2 --provider cpu".split()
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        main, ["sweep", str(source), "-o", str(folder), *options]
    )
    assert result.exit_code == 0, result.output
    assert "svd, 4 bits" in result.output
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "sweep.json").read_text())
    assert len(record["points"]) == 7
