"""Fidelity and metrics over batches, against values worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from svd2onnx_runtime import InputsError, evaluate, open_session, run, sample_errors
from tests.runtime.quantized_graphs import float_matmul, quantized_matmul, token_graph


@pytest.fixture
def graphs(tmp_path: Path) -> tuple[Path, Path]:
    """Two float graphs: the second scales the second of two outputs by one half."""
    reference, path = tmp_path / "reference.onnx", tmp_path / "graph.onnx"
    float_matmul(reference, np.eye(2))
    float_matmul(path, np.diag([1, 0.5]))
    return path, reference


def batches() -> list[dict[str, np.ndarray]]:
    return [
        {"x": np.array([[1, 0], [0, 1], [1, 0]], np.float32), "labels": np.array([1, 0, 1])},
        {"x": np.array([[0, 1]], np.float32), "labels": np.array([1])},
    ]


def total(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> float:
    return float(outputs["y"].sum() / len(batch["labels"]))


def test_errors_are_collected_over_the_batches(graphs: tuple[Path, Path]) -> None:
    result = evaluate(*graphs, batches(), None, "mse", "cpu")
    assert (result.provider, result.objective, result.samples) == ("cpu", "mse", 4)
    assert result.mean_error == pytest.approx(0.125)  # 0, 1/4, 0, 1/4
    assert result.fidelity == pytest.approx(0.875)
    assert result.standard_error == pytest.approx(np.std([0, 0.25, 0, 0.25], ddof=1) / 2)
    assert (result.worst_error, result.worst_sample) == (0.25, 1)
    assert result.metric == result.reference_metric == {}


def test_a_float_metric_is_weighted_by_rows(graphs: tuple[Path, Path]) -> None:
    result = evaluate(*graphs, batches(), total, "mse", "cpu")
    assert result.reference_metric == {"metric": pytest.approx(1.0)}
    assert result.metric == {"metric": pytest.approx((2.5 + 0.5) / 4)}


def columns(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict:
    return {"second": outputs["y"][:, 1], "rows": len(batch["labels"])}


def test_columns_are_concatenated_and_averaged(graphs: tuple[Path, Path]) -> None:
    result = evaluate(*graphs, batches(), columns, "mse", "cpu")
    assert result.metric == {"second": pytest.approx(0.25), "rows": pytest.approx(10 / 4)}
    assert result.reference_metric["second"] == pytest.approx(0.5)


def test_a_summary_reduces_whole_columns(graphs: tuple[Path, Path]) -> None:
    def summary(every: dict[str, np.ndarray]) -> dict[str, float]:
        assert every["second"].shape == (4,)
        return {"largest": float(every["second"].max())}

    result = evaluate(*graphs, batches(), columns, "mse", "cpu", summary=summary)
    assert result.metric == {"rows": pytest.approx(2.5), "largest": 0.5}
    assert result.reference_metric["largest"] == 1


@pytest.mark.parametrize(("shape", "samples"), [((1, 3), 2), ((1, 2), 3)], ids=["fits", "other"])
def test_kl_takes_the_attention_mask_that_fits(tmp_path: Path, shape: tuple[int, int], samples: int) -> None:
    path = tmp_path / "graph.onnx"
    weight = quantized_matmul(path, shape=("batch", "sequence"), k=32, n=8)
    assert weight.shape == (32, 8)
    mask = np.ones(shape, np.int64)
    mask[0, 0] = 0
    x = np.random.default_rng(0).standard_normal((1, 3, 32)).astype(np.float32)
    result = evaluate(path, path, [{"x": x, "attention_mask": mask}], None, "kl", "cpu")
    assert (result.samples, result.fidelity) == (samples, 1)


def test_fidelity_is_that_of_the_deployed_graph(tmp_path: Path) -> None:
    """Against the dequantized weight in float32, what is left is the rounding of activations."""
    path, reference = tmp_path / "graph.onnx", tmp_path / "reference.onnx"
    float_matmul(reference, quantized_matmul(path))
    x = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    result = evaluate(path, reference, [{"x": x}], None, "cosine", "cpu")
    outputs = [run(open_session(file, "cpu"), {"x": x})["y"] for file in (reference, path)]
    assert result.mean_error == sample_errors("cosine", *outputs).mean()
    assert 1e-7 < result.mean_error < 1e-3


def test_one_sample_has_no_standard_error(graphs: tuple[Path, Path]) -> None:
    result = evaluate(*graphs, batches()[1:], None, "kl", "cpu")
    assert (result.samples, result.standard_error) == (1, None)
    assert result.fidelity == pytest.approx(math.exp(-result.mean_error))


def test_no_batches_are_refused(graphs: tuple[Path, Path]) -> None:
    with pytest.raises(InputsError, match="at least one sample"):
        evaluate(*graphs, [], None, "mse", "cpu")


def test_graphs_of_different_networks_are_refused(tmp_path: Path, graphs: tuple[Path, Path]) -> None:
    float_matmul(tmp_path / "wide.onnx", np.ones((2, 3)))
    with pytest.raises(InputsError, match=r"\[3, 2\].*\[3, 3\]"):
        evaluate(tmp_path / "wide.onnx", graphs[1], batches(), None, "mse", "cpu")
    token_graph(tmp_path / "tokens.onnx")
    with pytest.raises(InputsError, match="needs input 'ids'"):
        evaluate(tmp_path / "tokens.onnx", graphs[1], batches(), None, "mse", "cpu")
