"""Tables survive JSON, refuse what is none, and layers are timed for real."""

from pathlib import Path

import pytest

from svd2onnx_runtime.errors import InputsError
from svd2onnx_runtime.latency_table import (
    Conditions,
    LatencyTable,
    LayerKey,
    LayerLatency,
    time_layers,
)
from svd2onnx_runtime.machine import device_name
from tests.runtime.quantized_graphs import quantized_matmul

KEY = LayerKey("linear", "int4/32", (96, 64), (1, 128))


def table() -> LatencyTable:
    return LatencyTable(Conditions.here("cpu", None), {KEY: LayerLatency(0.25, 0.125)})


def test_json_keeps_everything() -> None:
    assert LatencyTable.from_json(table().to_json()) == table()
    assert table().conditions.device == device_name("cpu")


def test_new_entries_win() -> None:
    other = LayerKey("linear", "float", (96, 64), (1, 128))
    grown = table().extended({KEY: LayerLatency(1.0, 1.0), other: LayerLatency(2.0, 2.0)})
    assert grown.entries == {KEY: LayerLatency(1.0, 1.0), other: LayerLatency(2.0, 2.0)}
    assert grown.conditions == table().conditions


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "svd2onnx-latency/2"}',
        '{"format": "svd2onnx-latency/1", "entries": []}',
        table().to_json().replace('"cold_ms": 0.25', '"cold_ms": null'),
        table().to_json().replace("[96, 64]", "96"),
        "[" * 100_000,
    ],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(InputsError, match="a latency table is JSON"):
        LatencyTable.from_json(text)


def test_every_graph_is_timed_cold_and_hot(tmp_path: Path) -> None:
    """Of a thousand times the weights, the larger one takes longer on any machine."""
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    quantized_matmul(small, k=64, n=64, shape=(8,))
    quantized_matmul(large, k=2048, n=2048, shape=(8,))
    times = time_layers([small, large], 2, "cpu", threads=1, repeats=3)
    assert 0 < times[0].hot_ms < times[1].hot_ms
    assert 0 < times[0].cold_ms < times[1].cold_ms
    (alone,) = time_layers([large], 2000, "cpu", threads=1, repeats=3)
    assert alone.hot_ms < times[1].hot_ms / 100
