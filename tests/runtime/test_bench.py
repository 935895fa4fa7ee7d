"""The benchmark's bookkeeping: order of turns, sizes, and memory in a process of its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from svd2onnx_runtime import (
    GraphError,
    InputsError,
    bench,
    graph_bytes,
    measure_footprint,
    open_session,
    run,
)
from svd2onnx_runtime.bench import BoundCall, _interleaved
from tests.runtime.quantized_graphs import float_matmul, quantized_matmul


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {"float32": tmp_path / "float.onnx", "int4": tmp_path / "int4.onnx"}
    float_matmul(paths["float32"], quantized_matmul(paths["int4"], k=512, n=512, block=128))
    return paths


def test_bench_times_both_graphs_and_states_its_conditions(files: dict[str, Path]) -> None:
    x = np.ones((2, 512), np.float32)
    result = bench(files, {"x": x, "labels": np.array([{}])}, "cpu", 1, repeats=20, warmup=2)
    assert (result.provider, result.threads, result.tf32, result.batch) == ("cpu", 1, None, 2)
    assert [graph.name for graph in result.graphs] == ["float32", "int4"]
    for graph, path in zip(result.graphs, files.values(), strict=True):
        assert 0 < graph.p10_ms <= graph.median_ms <= graph.p90_ms <= graph.p99_ms
        assert graph.samples_per_s == pytest.approx(2e3 / graph.median_ms)
        assert graph.file_bytes == path.stat().st_size
        assert graph.load_s > 0
    assert result.graphs[0].latency_ratio == 1
    assert result.graphs[1].latency_ratio > 0
    assert json.loads(result.to_json())["graphs"][1]["name"] == "int4"


def test_graphs_take_turns_and_the_order_turns_around() -> None:
    calls: list[str] = []
    seconds = _interleaved([lambda: calls.append("a"), lambda: calls.append("b")], 3, 1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # warm-up, then three rounds
    assert seconds.shape == (3, 2)
    assert (seconds > 0).all()


def test_a_bound_call_computes_into_fixed_buffers(files: dict[str, Path]) -> None:
    session = open_session(files["float32"], "cpu")
    x = np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)
    binding = session.io_binding()
    session.io_binding = lambda: binding  # keep hold of the one that the call uses
    BoundCall(session, {"x": x}, "cpu")()
    (output,) = binding.get_outputs()
    np.testing.assert_array_equal(output.numpy(), run(session, {"x": x})["y"])


def test_external_data_counts(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    float_matmul(path, np.ones((64, 64)), external=True)
    (tmp_path / "graph.onnx.data.old").write_bytes(b"not named by the graph")
    assert path.stat().st_size < 1000
    assert graph_bytes(path) == path.stat().st_size + 64 * 64 * 4


def test_memory_is_that_of_the_graph(tmp_path: Path) -> None:
    """A weight of 64 MB adds at least itself; a small graph adds much less."""
    sizes = {}
    for width in (64, 4096):
        path = tmp_path / f"{width}.onnx"
        float_matmul(path, np.ones((width, width)))
        x = {"x": np.ones((1, width), np.float32)}
        sizes[width] = measure_footprint(path, x, "cpu", 1).resident_mb
    assert sizes[64] is not None
    assert sizes[4096] is not None
    assert sizes[4096] - sizes[64] > 60


def test_a_graph_that_fails_in_its_own_process_is_a_graph_error(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="found nothing") as caught:
        measure_footprint(tmp_path / "absent.onnx", {}, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"repeats": 0}, {"warmup": -1}, {"paths": {}}], ids=str)
def test_nothing_to_time_is_refused(files: dict[str, Path], change: dict) -> None:
    arguments = {"paths": files, "inputs": {"x": np.ones((1, 512), np.float32)}} | change
    with pytest.raises(InputsError, match="at least one graph"):
        bench(**arguments, provider="cpu")
