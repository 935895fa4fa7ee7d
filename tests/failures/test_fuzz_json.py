"""Damaged plans, sweeps and latency tables end in one line that names the file, or are good enough."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from svd2onnx.cli.tables.sweep import sweep_tables
from svd2onnx.compression.realize import realize
from svd2onnx.latency.latency_model import read_table
from svd2onnx.network.rewrite import rewrite
from svd2onnx.pipeline.goal_choice import read_plan, uniform_plans
from svd2onnx.pipeline.preparation import Prepared, prepare
from svd2onnx.planning.fixed_rules import uniform_plan
from svd2onnx.study.points import Point, Setting, Sweep, wanted
from svd2onnx.values.errors import Svd2OnnxError
from svd2onnx.values.schema import CompressionPlan, LayerForm, QuantSpec
from svd2onnx.values.settings import Settings
from svd2onnx_runtime.latency_table import Conditions, LatencyTable, LayerKey, LayerLatency
from tests.svd2onnx.conftest import MODEL_FILE
from tests.svd2onnx.mutations import damaged_json

FEW = settings(
    derandomize=True, max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
MANY = settings(FEW, max_examples=2000)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    source = tmp_path_factory.mktemp("fuzz") / "network.py"
    source.write_text(MODEL_FILE)
    return prepare(source, Settings(), None)


def check(path: Path, content: bytes, use: Callable[[Path], object]) -> None:
    """``use`` takes the file or refuses it in one line that names it, and leaves nothing beside it."""
    path.write_bytes(content)
    try:
        use(path)
    except Svd2OnnxError as error:
        line = str(error)
        assert str(path) in line, line
        assert line == line.strip()
        assert "\n" not in line, line
        assert len(line) < 2000
    assert list(path.parent.iterdir()) == [path]


PLAN = {
    "format": "svd2onnx-plan/1",
    "method": "auto",
    "layers": {
        "table": {"dense": {"bits": 8, "block_size": 64}},
        "first": {"rank": 16, "factors": {"bits": 4, "block_size": 32}},
        "second": {"rank": 32, "factors": {"bits": 8, "block_size": 32}, "activations": "int8"},
    },
    "notes": {},
    "predicted_errors": {"first": 0.25},
}  # fmt: skip


def plans(prepared: Prepared) -> Callable[[Path], object]:
    """Read a plan, and build the network of one that is taken."""

    def use(path: Path) -> None:
        plan = read_plan(path, prepared)
        assert isinstance(plan, CompressionPlan)
        json.dumps(plan.to_json()).encode()
        layers = realize(prepared.model, prepared.sites, plan, {})
        rewrite(prepared.model, prepared.sites, layers)

    return use


CONDITIONS = Conditions.here("cpu", 1)
TABLE = json.loads(
    LatencyTable(
        CONDITIONS,
        {
            LayerKey("linear", form, (64, 64), (1, 128)): LayerLatency(0.5, 0.25)
            for form in ("float", str(LayerForm(QuantSpec(8, 128))))
        },
    ).to_json()
)


def tables(_prepared: Prepared) -> Callable[[Path], object]:
    """Read a table for this machine, and look at every time."""

    def use(path: Path) -> None:
        table = read_table(path, "cpu", 1)
        assert table.conditions == CONDITIONS
        assert all(
            0 < latency.cold_ms < 1e7 and 0 < latency.hot_ms < 1e7 for latency in table.entries.values()
        )
        table.to_json().encode()

    return use


POINTS = (
    Point(Setting("float"), 1000, 1.0, 1.0, 0.0, metric={"positive": 0.5}),
    Point(Setting("svd", 8, 0.2), 300, 0.3, 0.99, 0.01, 0.001, 0.02, {"positive": 0.4}, {"int8/128": 2}, 1.5),
    Point(Setting("planned", value=0.001), failure="cannot be reached"),
)
SWEEP = json.loads(Sweep("network.py", "cosine", POINTS).to_json())


def sweeps(_prepared: Prepared) -> Callable[[Path], object]:
    """Read a sweep as a run that goes on does, add a point, and print it."""

    def use(path: Path) -> None:
        found = Sweep.read(path, "network.py", "cosine")
        assert all(found.has(point.setting) for point in found.points)
        more = replace(found, points=(*found.points, POINTS[0]))
        more.to_json().encode()
        more.to_csv()
        Console(quiet=True).print(*sweep_tables(more))

    return use


FILES = {"plan": (PLAN, plans), "latency table": (TABLE, tables), "sweep": (SWEEP, sweeps)}
EACH = pytest.mark.parametrize("kind", FILES)


@EACH
def test_the_whole_file_is_taken(prepared: Prepared, tmp_path: Path, kind: str) -> None:
    document, reader = FILES[kind]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(document))
    reader(prepared)(path)


@EACH
@given(data=st.data())
@FEW
def test_a_damaged_file(prepared: Prepared, tmp_path: Path, kind: str, data: st.DataObject) -> None:
    document, reader = FILES[kind]
    check(tmp_path / "file.json", data.draw(damaged_json(document)), reader(prepared))


@pytest.mark.slow
@EACH
@given(data=st.data())
@MANY
def test_two_thousand_damaged_files(
    prepared: Prepared, tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    document, reader = FILES[kind]
    check(tmp_path / "file.json", data.draw(damaged_json(document)), reader(prepared))


@EACH
@pytest.mark.parametrize(
    "text", ['{"a": ' + "9" * 5000 + "}", "[" * 100_000, "", "\x00", "\ud800"], ids=range(5)
)
def test_what_is_hardly_json(prepared: Prepared, tmp_path: Path, kind: str, text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    check(tmp_path / "file.json", content, FILES[kind][1](prepared))


def test_every_setting_of_a_sweep_comes_back(tmp_path: Path) -> None:
    settings_of = wanted([8], [0.1], [0.2], retrained=True)
    path = tmp_path / "sweep.json"
    path.write_text(
        Sweep("a", "mse", tuple(Point(own, metric={"m": float("nan")}) for own in settings_of)).to_json()
    )
    assert [point.setting for point in Sweep.read(path, "a", "mse").points] == settings_of


def test_plans_that_the_planner_writes_are_read(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for plan in (*uniform_plans(prepared.sites), uniform_plan(prepared.sites, QuantSpec(4, 256))):
        path.write_text(json.dumps(plan.to_json()))
        assert read_plan(path, prepared).forms == plan.forms
