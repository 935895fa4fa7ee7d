"""The benchmark's bookkeeping: what stands in a result, sizes, and memory in processes of their own."""

import json
from pathlib import Path

import numpy as np
import pytest

from svd2onnx_runtime import (
    BenchResult,
    InputsError,
    bench,
    bench_by_batch,
    graph_bytes,
)
from tests.runtime.quantized_graphs import float_matmul, quantized_matmul


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    paths = {"float32": folder / "float.onnx", "int4": folder / "int4.onnx"}
    float_matmul(paths["float32"], quantized_matmul(paths["int4"], k=512, n=512, block=128))
    return paths


@pytest.fixture(scope="module")
def results(files: dict[str, Path]) -> list[BenchResult]:
    """The result after each of two batches; an array that no graph takes is let alone."""
    batches = [{"x": np.ones((rows, 512), np.float32), "labels": np.array([{}])} for rows in (2, 4)]
    return list(bench_by_batch(files, batches, "cpu", 1, repeats=20, warmup=2))


def test_bench_states_its_conditions(results: list[BenchResult]) -> None:
    result = results[-1]
    assert (result.provider, result.threads, result.tf32) == ("cpu", 1, None)
    assert (result.repeats, result.warmup) == (20, 2)
    assert result.device
    assert result.roofline.bytes_per_s > 0
    assert json.loads(result.to_json())["graphs"][1]["name"] == "int4"


def test_bench_times_every_graph_at_every_batch(results: list[BenchResult]) -> None:
    result = results[-1]
    assert [timing.batch for timing in result.batches] == [2, 4]
    for timing in result.batches:
        assert [graph.name for graph in timing.graphs] == ["float32", "int4"]
        assert timing.graphs[0].latency_ratio == 1
        for graph in timing.graphs:
            assert 0 < graph.p10_ms <= graph.median_ms <= graph.p95_ms
            assert graph.samples_per_s == pytest.approx(timing.batch * 1e3 / graph.median_ms)
            assert graph.latency_ratio > 0
            assert graph.limit_ms > 0


def test_bench_measures_each_graph_once(results: list[BenchResult], files: dict[str, Path]) -> None:
    assert results[0].graphs == results[1].graphs
    assert len(results[0].batches) == 1
    for graph, path in zip(results[0].graphs, files.values(), strict=True):
        assert (graph.path, graph.file_bytes) == (str(path), path.stat().st_size)
        assert graph.footprint.load_s > 0
        assert graph.elsewhere == ()


def test_external_data_counts(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    float_matmul(path, np.ones((64, 64)), external=True)
    (tmp_path / "graph.onnx.data.old").write_bytes(b"not named by the graph")
    assert path.stat().st_size < 1000
    assert graph_bytes(path) == path.stat().st_size + 64 * 64 * 4


@pytest.mark.parametrize("change", [{"repeats": 0}, {"warmup": -1}, {"paths": {}}], ids=str)
def test_nothing_to_time_is_refused(files: dict[str, Path], change: dict) -> None:
    arguments = {"paths": files, "batches": [{"x": np.ones((1, 512), np.float32)}]} | change
    with pytest.raises(InputsError, match="at least one graph"):
        bench(**arguments, provider="cpu")


def test_no_batch_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InputsError, match="at least one batch"):
        bench(files, [], "cpu")
