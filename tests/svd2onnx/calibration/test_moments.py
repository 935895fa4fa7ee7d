"""With a diagonal all is as with the diagonal matrix; very wide layers go through on their diagonals."""

import pytest
import torch
from torch import Tensor, nn

from svd2onnx.calibration import accumulation as gathering
from svd2onnx.calibration import moments
from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.moments import (
    add_outer_sum,
    add_square,
    damp,
    diagonal,
    outer_sum,
    over,
    root,
    times,
    unit_mean,
)
from svd2onnx.compression import lowrank, rounding
from svd2onnx.compression.factors import Target, quantized_pair
from svd2onnx.compression.lowrank import Weighting, factorize
from svd2onnx.compression.rounding import Curvature
from svd2onnx.network.layers import discover
from svd2onnx.planning.candidates import candidates
from svd2onnx.values.schema import QuantSpec

OWN = torch.linspace(0.1, 3, 80, dtype=torch.float64)
MATRIX = torch.diag(OWN)
WEIGHT = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))


def test_a_diagonal_stands_for_its_matrix() -> None:
    rows = WEIGHT.double()
    torch.testing.assert_close(diagonal(MATRIX), diagonal(OWN))
    torch.testing.assert_close(times(rows, OWN), times(rows, MATRIX))
    torch.testing.assert_close(torch.diag(unit_mean(OWN)), unit_mean(MATRIX))
    torch.testing.assert_close(torch.diag(damp(OWN, 0.1)), damp(MATRIX, 0.1))
    torch.testing.assert_close(torch.diag(root(OWN, 1e-6)), root(MATRIX, 1e-6))
    torch.testing.assert_close(over(rows, OWN), over(rows, MATRIX))
    torch.testing.assert_close(outer_sum(rows, 2 * rows, False), outer_sum(rows, 2 * rows, True).diagonal())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [True, False])
def test_products_and_squares_are_added_in_place(dtype: torch.dtype, whole: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, others = torch.randn(2, 7, 5, generator=generator)
    total = torch.randn((5, 5) if whole else (5,), generator=generator, dtype=dtype)
    before = total.clone()
    add_outer_sum(total, rows, others)
    torch.testing.assert_close(total, (before + outer_sum(rows, others, whole)).to(dtype))
    before = total.clone()
    add_square(total, rows[0].double(), -0.5)
    torch.testing.assert_close(total, (before - 0.5 * outer_sum(rows[:1], rows[:1], whole)).to(dtype))


def test_a_root_of_a_singular_moment_can_be_divided_by() -> None:
    seen = torch.randn(3, 80, generator=torch.Generator().manual_seed(1)).double()
    for singular in (seen.T @ seen, OWN * (OWN > 1)):
        half = root(singular, 1e-6)
        again = half.square() if half.ndim == 1 else half @ half.T
        torch.testing.assert_close(again, damp(singular, 1e-6))
        torch.testing.assert_close(over(times(WEIGHT.double(), half), half), WEIGHT.double())


def test_a_moment_that_rounding_made_indefinite_has_a_root() -> None:
    basis = torch.linalg.qr(torch.randn(80, 80, generator=torch.Generator().manual_seed(1)).double())[0]
    values = OWN.clone()
    values[:5] = -1e-4
    half = root((basis * values) @ basis.T, 1e-6)
    assert torch.equal(half, half.tril())
    torch.testing.assert_close(half @ half.T, (basis * values.clamp_min(1e-6)) @ basis.T, rtol=0, atol=1e-5)


def test_the_best_factors_are_those_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Weighting(MATRIX).factorize(WEIGHT).truncate(10)
    plain = factorize(WEIGHT).truncate(10)
    monkeypatch.setattr(lowrank, "_LARGE", 16)  # by way of the smaller side
    found, again = Weighting(OWN).factorize(WEIGHT).truncate(10), factorize(WEIGHT).truncate(10)
    torch.testing.assert_close(found.left @ found.right, expected.left @ expected.right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.left @ again.right, plain.left @ plain.right, rtol=1e-4, atol=1e-5)


def test_pairs_are_rounded_on_a_diagonal() -> None:
    factors = Weighting(OWN).factorize(WEIGHT)
    target = Target(WEIGHT, Curvature(damp(OWN, 0.05)))
    left, right = quantized_pair(target, factors.truncate(32), QuantSpec(8, 32))
    best = factors.left[:, :32] @ factors.right[:32]
    found = left.dequantize() @ right.dequantize()
    assert float((found - WEIGHT).norm()) < 1.05 * float((best - WEIGHT).norm())


def test_a_wide_layer_is_calibrated_and_priced_on_its_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(nn.Module):
        """x [batch, 200] -> [batch, 64]."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(200, 96), nn.Linear(96, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    network = Wide().eval().requires_grad_(False)
    batches = [{"x": torch.randn(size, 200)} for size in (20, 30)]
    sites = discover(network, batches[0])
    whole = calibrate(network, sites, batches, "mse", batches)
    for module in (moments, gathering, rounding):
        monkeypatch.setattr(module, "WIDEST", 128)
    narrow = calibrate(network, sites, batches, "mse", batches)
    for name in ("covariance", "gradient_moment"):
        expected, found = (getattr(own["first"], name) for own in (whole, narrow))
        assert found.shape == (200,)
        torch.testing.assert_close(found, expected.diagonal(), rtol=1e-4, atol=1e-6)
        assert getattr(narrow["second"], name).shape == (96, 96)
    errors = {str(c.form): c.error for c in candidates(network, sites, narrow)["first"]}
    assert 0 < errors["int8/32"] < errors["int4/32"] < errors["int2/32"]
    assert any(form.startswith("rank 32") for form in errors)
