"""In int8 form a graph still holds its codes, and computes the same but for the rounding of activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from svd2onnx.graph.int8_matmul import to_integer
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.schema import QuantSpec
from svd2onnx_runtime import certify, open_session, run
from tests.svd2onnx.graph.exported import CASES, Case, Exported
from tests.svd2onnx.networks import Compressed, Mlp, batches_of, compress, seeded


class Single(nn.Module):
    """x [batch, inputs] -> [batch, 96]."""

    def __init__(self, inputs: int = 64) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 96)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def in_both_forms(compressed: Compressed, folder: Path, *, even: bool = True) -> tuple[Path, Path]:
    """The exported graph and its int8 form."""
    plain, integer = folder / "plain.onnx", folder / "integer.onnx"
    compressed.export(plain)
    to_integer(plain, integer, compressed.layers, compressed.statistics if even else {})
    return plain, integer


def outputs(path: Path, compressed: Compressed, *, strict: bool = False) -> list[np.ndarray]:
    session = open_session(path, "cpu", strict=strict)
    return [y for batch in compressed.batches for y in run(session, as_arrays(batch)).values()]


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_every_matmul_runs_in_int8_and_differs_by_rounding(
    case: Case, export_once: Callable[[Case], Exported], tmp_path: Path
) -> None:
    made = export_once(case)
    compressed, plain, integer = made.compressed, made.path, tmp_path / "integer.onnx"
    to_integer(plain, integer, compressed.layers, compressed.statistics)
    inputs = as_arrays(compressed.batches[0])
    certificate = certify(integer, "cpu", inputs=inputs)
    assert certificate.ok, certificate.unfused
    assert set(certificate.fused) == set(certify(plain, "cpu", inputs=inputs).fused)
    assert len(certificate.fused) > 0
    expected = outputs(plain, compressed, strict=True)
    assert 0 < difference(outputs(integer, compressed), expected) < 0.05
    # As written and as optimized it is the same arithmetic, up to where a sum is rounded.
    assert difference(outputs(integer, compressed, strict=True), outputs(integer, compressed)) < 0.02


def test_a_block_that_is_not_full_is_dequantized_rightly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Single(80).eval().requires_grad_(False)
    batches = [{"x": torch.randn(5, 80)}, {"x": torch.randn(9, 80)}]
    compressed = compress(network, batches, QuantSpec(8, 64))
    plain, integer = in_both_forms(compressed, tmp_path)
    assert difference(outputs(integer, compressed), outputs(plain, compressed, strict=True)) < 0.02


def test_uneven_channels_are_evened_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Single().eval().requires_grad_(False)
    sizes = torch.ones(64)
    sizes[3] = 100.0
    network.linear.weight[:, 3] /= 100.0
    batches = [{"x": torch.randn(count, 64) * sizes} for count in (40, 50)]
    compressed = compress(network, batches, QuantSpec(8, 32))
    errors = []
    for even in (True, False):
        plain, integer = in_both_forms(compressed, tmp_path, even=even)
        errors.append(difference(outputs(integer, compressed), outputs(plain, compressed, strict=True)))
    assert errors[0] < 0.2 * errors[1]


def test_the_file_stays_as_small_and_its_rows_of_zeros_stay_zero(tmp_path: Path) -> None:
    network = seeded(Mlp)
    network.first.weight[7] = 0.0
    compressed = compress(network, batches_of(network), QuantSpec(4, 32))
    plain, integer = in_both_forms(compressed, tmp_path)
    stored = [sum(len(t.raw_data) for t in onnx.load(path).graph.initializer) for path in (plain, integer)]
    channels = sum(4 * (2 * layer.shape[1] + layer.shape[0]) for layer in compressed.layers.values())
    assert stored[1] <= stored[0] + channels + 200 * len(compressed.layers)
    assert all(np.isfinite(y).all() for y in outputs(integer, compressed))


def test_an_input_of_zeros_gives_the_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Single().eval().requires_grad_(False)
    compressed = compress(network, [{"x": torch.randn(5, 64)}, {"x": torch.randn(6, 64)}], QuantSpec(8, 32))
    plain, integer = in_both_forms(compressed, tmp_path)
    zeros = {"x": np.zeros((2, 64), np.float32)}
    (wanted,) = run(open_session(plain, "cpu", strict=True), zeros).values()
    (found,) = run(open_session(integer, "cpu"), zeros).values()
    assert np.allclose(found, wanted, atol=1e-6)
