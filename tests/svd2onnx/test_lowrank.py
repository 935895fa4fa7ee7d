"""Truncation errs by the dropped singular values; the rank rule finds the smallest rank that will do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd2onnx.lowrank import RANK_STEP, factorize, largest_paying_rank, smallest_rank
from svd2onnx.schema import BITS, QuantSpec


def decaying(rows: int, columns: int, rate: float, seed: int = 0) -> Tensor:
    """A matrix whose singular values fall by ``rate`` from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    size = min(rows, columns)
    return (left[:, :size] * rate ** torch.arange(size)) @ right[:size]


def relative_output_error(
    weight: Tensor, inputs: Tensor, bias: Tensor | None, spec: QuantSpec, rank: int
) -> float:
    """Worked out from the definition, in float64."""
    left, right = factorize(weight).truncate(rank).quantize(spec)
    outputs = inputs.double() @ weight.double().T
    ours = inputs.double() @ right.dequantize().double().T @ left.dequantize().double().T
    whole = outputs if bias is None else outputs + bias.double()
    return float((ours - outputs).norm() / whole.norm())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**16))
def test_truncation_errs_by_the_dropped_singular_values(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    kept = factorize(weight).truncate(rank)
    error = (kept.left.double() @ kept.right.double() - weight.double()).square().sum()
    dropped = torch.linalg.svdvals(weight.double())[rank:].square().sum()
    torch.testing.assert_close(error, dropped, rtol=1e-5, atol=1e-9)


def test_the_left_factor_is_orthonormal_and_the_right_holds_the_singular_values() -> None:
    weight = decaying(24, 40, 0.9)
    factors = factorize(weight)
    torch.testing.assert_close(factors.left.T @ factors.left, torch.eye(24), rtol=0, atol=1e-5)
    torch.testing.assert_close(factors.right.norm(dim=1), torch.linalg.svdvals(weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(256, 256), (512, 128), (96, 400), (32, 32), (17, 300)], ids=str)
def test_the_largest_paying_rank_pays_and_the_next_does_not(bits: int, shape: tuple[int, int]) -> None:
    spec = QuantSpec(bits, 32)
    rows, columns = shape
    dense = spec.stored_bytes(rows, columns)

    def pays(rank: int) -> bool:
        return spec.stored_bytes(rows, rank) + spec.stored_bytes(rank, columns) < dense

    paying = [rank for rank in range(RANK_STEP, min(shape) + 1, RANK_STEP) if pays(rank)]
    found = largest_paying_rank(shape, spec)
    assert found // RANK_STEP * RANK_STEP == max(paying, default=0)
    assert found <= min(shape)


@pytest.mark.parametrize(
    ("bits", "rate", "epsilon", "with_bias"),
    [
        (8, 0.95, 0.1, True),
        (8, 0.97, 0.3, False),
        (8, 0.98, 0.5, True),
        (4, 0.95, 0.3, False),
        (4, 0.97, 0.5, True),
        (2, 0.9, 0.7, False),
    ],
)
def test_the_rank_is_the_smallest_of_all_that_will_do(
    bits: int, rate: float, epsilon: float, with_bias: bool
) -> None:
    spec, weight = QuantSpec(bits, 32), decaying(128, 192, rate)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 192, generator=generator)
    bias = torch.randn(128, generator=generator) * 0.2 if with_bias else None
    ranks = range(RANK_STEP, largest_paying_rank((128, 192), spec) + 1, RANK_STEP)
    errors = {rank: relative_output_error(weight, inputs, bias, spec, rank) for rank in ranks}
    good = [rank for rank, error in errors.items() if error <= epsilon]
    assert good, "the example must have an answer"
    assert smallest_rank(weight, inputs, bias, spec, epsilon) == min(good)


def test_a_large_bias_makes_a_smaller_rank_enough() -> None:
    spec, weight = QuantSpec(8, 32), decaying(128, 128, 0.97)
    inputs = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    plain = smallest_rank(weight, inputs, None, spec, 0.1)
    biased = smallest_rank(weight, inputs, torch.full((128,), 3.0), spec, 0.1)
    assert plain is None or biased < plain
    assert biased == RANK_STEP


def test_the_error_counts_where_the_inputs_are() -> None:
    """Inputs in the span of the first 16 right singular vectors need no more than those."""
    spec, weight = QuantSpec(8, 32), decaying(128, 128, 0.999)
    basis = torch.linalg.svd(weight)[2][:16]
    inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) @ basis
    everywhere = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    assert smallest_rank(weight, inputs, None, spec, 0.05) == 16
    assert smallest_rank(weight, everywhere, None, spec, 0.05) is None


def test_no_rank_where_factors_never_pay() -> None:
    weight = decaying(24, 24, 0.1)  # of rank 1 to rounding, but two factors of rank 16 are larger
    assert smallest_rank(weight, torch.eye(24), None, QuantSpec(8, 32), 0.9) is None


def test_no_rank_where_epsilon_is_out_of_reach() -> None:
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    assert smallest_rank(weight, torch.eye(128), None, QuantSpec(8, 32), 0.1) is None
