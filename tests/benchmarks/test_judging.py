"""The judge agrees with svd2onnx's own evaluation of the same file."""

from pathlib import Path

import pytest

from benchmarks.judging import Judge, judge_of
from benchmarks.peers import ort_nbits
from benchmarks.task import Task, load_task
from svd2onnx.sources.model_file import as_arrays
from svd2onnx_runtime import evaluate


@pytest.fixture
def graph(task: Task, tmp_path: Path) -> Path:
    path = tmp_path / "quantized.onnx"
    ort_nbits.compress(task, path, algorithm="default", bits=4, block=32, symmetric=True, qdq=True)
    return path


def test_deployed_error_and_metric_are_those_of_evaluate(task: Task, judge: Judge, graph: Path) -> None:
    source = task.model_file
    batches = [as_arrays(batch) for batch in source.inputs("evaluation")]
    expected = evaluate(
        graph, task.graph, batches, source.metric, source.objective, "cpu", summary=source.summary
    )
    errors, metric = judge.errors(graph, strict=False)
    assert errors.mean() == pytest.approx(expected.mean_error, rel=1e-6)
    assert metric == expected.metric["share"]
    assert judge.metric == expected.reference_metric["share"]


def test_float_graph_has_no_strict_error(task: Task, judge: Judge) -> None:
    errors, metric = judge.errors(task.graph, strict=True)
    assert errors.shape == (16,)
    assert errors.max() < 1e-9
    assert metric is None


def test_metric_of_numbers_is_weighted_by_rows(source: Path, tmp_path: Path) -> None:
    text = (
        source.read_text()
        .replace("output[:, 0] > 0", "float(len(output))")
        .replace("def summary", "def other")
    )
    path = tmp_path / "uneven.py"
    path.write_text(
        text.replace("(0, 160, (8, length))", "(0, 160, (length, 9))").replace("(8, length,", "(length, 9,")
    )
    judge = judge_of(load_task(path, None, 16, tmp_path / "float32.onnx"), tmp_path)
    assert judge.metric == (6 * 6 + 9 * 9) / 15
