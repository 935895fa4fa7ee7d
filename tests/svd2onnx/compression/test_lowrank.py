"""Truncation errs by the dropped singular values; the rank rule finds the smallest rank that will do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd2onnx.compression import lowrank
from svd2onnx.compression.lowrank import RANK_STEP, Weighting, factorize, largest_paying_rank, smallest_rank
from svd2onnx.values.schema import BITS, QuantSpec


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


def definite(seed: int, size: int) -> Tensor:
    """A positive definite matrix, float64, of condition about 100."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[
        0
    ]
    return (basis * torch.logspace(-1, 1, size, dtype=torch.float64)) @ basis.T


def weighted_loss(change: Tensor, inputs: Tensor, outputs: Tensor | None) -> float:
    """tr(G D H D^T), in float64."""
    change = change.double()
    sided = change if outputs is None else outputs @ change
    return float((sided @ inputs * change).sum())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 30), st.booleans(), st.integers(0, 2**16))
def test_weighted_truncation_errs_by_the_dropped_singular_values(
    rows: int, columns: int, rank: int, two_sided: bool, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    inputs, outputs = definite(seed, columns), definite(seed + 1, rows) if two_sided else None
    factors = Weighting(inputs, outputs).factorize(weight).truncate(rank)
    error = weighted_loss(weight - factors.left @ factors.right, inputs, outputs)
    # G^1/2 W H^1/2 has the singular values of any other roots of the same moments.
    weighted = weight.double() @ torch.linalg.cholesky(inputs)
    if outputs is not None:
        weighted = torch.linalg.cholesky(outputs).T @ weighted
    squares = torch.linalg.svdvals(weighted).square()
    assert error == pytest.approx(float(squares[rank:].sum()), rel=1e-4, abs=1e-9 * float(squares.sum()))


def test_weighted_truncation_beats_the_plain_one_and_its_left_factor_has_unit_columns() -> None:
    weight, inputs, outputs = decaying(24, 40, 0.95), definite(1, 40), definite(2, 24)
    ours = Weighting(inputs, outputs).factorize(weight).truncate(8)
    plain = factorize(weight).truncate(8)
    lost, plainly_lost = (weighted_loss(weight - f.left @ f.right, inputs, outputs) for f in (ours, plain))
    assert lost < 0.9 * plainly_lost
    torch.testing.assert_close(ours.left.square().mean(0), torch.ones(8), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rank", [0, 1, 5], ids=str)
def test_singular_moments_do_no_harm(rank: int) -> None:
    """Fewer samples than inputs: directions that were never seen are kept as well as the rest allows."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(rank, 40, generator=generator).double()
    weight = torch.randn(24, 40, generator=generator)
    factors = Weighting(seen.T @ seen).factorize(weight)
    assert bool(torch.isfinite(factors.left).all() & torch.isfinite(factors.right).all())
    torch.testing.assert_close(factors.left @ factors.right, weight, rtol=0, atol=2e-3)


def test_few_ranks_of_a_large_matrix_are_found_by_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a falling and of a flat spectrum, each time the same; what is left is hardly more than must be."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(256, 320, generator=generator)
    for weight, most in ((flat * torch.linspace(3, 0.01, 320) ** 2, 1.001), (flat, 1.01)):
        weighting = Weighting(torch.eye(320, dtype=torch.float64))
        exact = weighting.factorize(weight).truncate(16)
        monkeypatch.setattr(lowrank, "_LARGE", 64)
        found, again = (weighting.factorize(weight, 16) for _ in range(2))
        monkeypatch.undo()
        assert torch.equal(found.left, again.left)
        left_over = (weight - found.left @ found.right).square().sum()
        assert left_over <= most * (weight - exact.left @ exact.right).square().sum()
        assert torch.equal(weighting.factorize(weight, 16).left, exact.left)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)], ids=str)
def test_large_matrices_are_decomposed_by_their_smaller_side(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = decaying(*shape, 0.8)  # down to 1e-6
    exact = factorize(weight)
    monkeypatch.setattr(lowrank, "_LARGE", 64)
    found = factorize(weight)
    torch.testing.assert_close(found.left.T @ found.left, torch.eye(64), rtol=0, atol=1e-5)
    for rank in (4, 16, 64):
        ours, other = (f.truncate(rank).left @ f.truncate(rank).right for f in (found, exact))
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)


def test_a_decomposition_is_done_once_for_each_weight() -> None:
    weight, other = decaying(24, 32, 0.8), decaying(24, 32, 0.8, seed=1)
    decompose = lowrank.Decompositions()
    first = decompose(weight)
    assert decompose(weight.detach()) is first
    torch.testing.assert_close(first.left @ first.right, weight)
    assert decompose(other) is not first
    rank = smallest_rank(weight, torch.eye(32), None, QuantSpec(8, 32), 0.3, decompose)
    assert rank == smallest_rank(weight, torch.eye(32), None, QuantSpec(8, 32), 0.3)
