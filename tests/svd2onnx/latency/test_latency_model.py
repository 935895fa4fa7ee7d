"""The clock adds up what layers take, and reads tables of this machine alone."""

from pathlib import Path

import pytest

from svd2onnx.compute.progress import silent
from svd2onnx.graph.export import export_float
from svd2onnx.latency.latency_model import LatencyModel, measure_latency_model, read_table, target_ratio
from svd2onnx.latency.layer_times import LayerTimes
from svd2onnx.network.layers import discover
from svd2onnx.planning.candidates import Candidate
from svd2onnx.values.errors import PlanError, Svd2OnnxError
from svd2onnx.values.schema import CompressionPlan, LayerForm, LayerSite, QuantSpec
from svd2onnx_runtime.latency_table import Conditions, LatencyTable, LayerKey, LayerLatency
from tests.svd2onnx.networks import seeded
from tests.svd2onnx.stored_networks import Bags, stored_batches

FORM = LayerForm(QuantSpec(4, 32))
SITES = [LayerSite(name, "linear", (64, 64)) for name in ("first", "second")]
LEADING = {"first": [(8,)], "second": [(8,), (8,)]}


@pytest.fixture
def latency_model() -> LatencyModel:
    """Three calls of 2 ms in a network of 10 ms; compressed, one takes 0.5 ms."""
    entries = {
        LayerKey("linear", label, (64, 64), (8,)): LayerLatency(ms, ms)
        for label, ms in (("float", 2.0), (str(FORM), 0.5))
    }
    times = LayerTimes(LatencyTable(Conditions.here("cpu", 1), entries), LEADING, 0)
    return LatencyModel(Path("float.onnx"), {}, SITES, times, float_ms=10.0, layers_ms=6.0, scale=1.0)


def test_a_plan_changes_the_time_of_its_layers(latency_model: LatencyModel) -> None:
    for forms, expected in (({}, 1.0), ({"first": FORM}, 0.85), ({"first": FORM, "second": FORM}, 0.55)):
        assert latency_model.predicted_ratio(CompressionPlan("auto", forms)) == pytest.approx(expected)


def test_what_is_allowed_leaves_the_rest_its_time(latency_model: LatencyModel) -> None:
    assert latency_model.allowed_ms(1.0) == pytest.approx(6.0)
    assert latency_model.allowed_ms(0.55) == pytest.approx(1.5)
    assert latency_model.allowed_ms(0.3) < 0


def test_stored_weights_alone_change_no_time(tmp_path: Path) -> None:
    network = seeded(Bags)
    batch = stored_batches(network)[0]
    reference = tmp_path / "float.onnx"
    export_float(network, batch, {"ids": {0: "batch"}}, reference)
    table = LatencyTable(Conditions.here("cpu", 1), {})
    sites = discover(network, batch)
    clock = measure_latency_model(
        network, sites, reference, table, sizes={"batch": 2}, activations=("float",), track=silent
    )
    assert clock.predicted_ratio(CompressionPlan("auto", {"mix": FORM})) == 1


def test_a_measured_file_sets_the_clock(latency_model: LatencyModel) -> None:
    plan = CompressionPlan("auto", {"first": FORM})
    assert latency_model.corrected(-0.05).predicted_ratio(plan) == pytest.approx(0.80)
    assert latency_model.corrected(-0.05).allowed_ms(0.5) == pytest.approx(latency_model.allowed_ms(0.55))


def test_candidates_get_their_latency(latency_model: LatencyModel) -> None:
    menu = {"second": [Candidate(None, 100, 0.0), Candidate(FORM, 10, 0.1)]}
    assert [c.latency for c in latency_model.timed(menu)["second"]] == [4.0, 1.0]


@pytest.mark.parametrize(
    ("text", "ratio"), [("0.5x", 0.5), (".5X", 0.5), ("5ms", 0.25), ("40 ms", 2.0), ("50%", 0.5)]
)
def test_a_latency_is_a_share_or_a_time(text: str, ratio: float) -> None:
    assert target_ratio(text, 20.0) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["", "0.5", "0x", "-1x", "1s", "x", "nanx", "1e3ms"])
def test_other_texts_are_no_latency(text: str) -> None:
    with pytest.raises(PlanError, match=r"0\.5x"):
        target_ratio(text, 20.0)


def test_a_table_is_read_back_on_the_same_machine_only(latency_model: LatencyModel, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(latency_model.times.table.to_json())
    assert read_table(path, "cpu", 1) == latency_model.times.table
    with pytest.raises(PlanError, match=r"measured on .*threads=1.* and this is .*threads=2"):
        read_table(path, "cpu", 2)
    assert read_table(None, "cpu", 2).entries == {}


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the latency table .*missing\.json"):
        read_table(tmp_path / "missing.json", "cpu", 1)
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(Svd2OnnxError, match="a latency table is JSON"):
        read_table(path, "cpu", 1)
