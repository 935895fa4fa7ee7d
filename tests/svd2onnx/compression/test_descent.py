"""Coordinate descent lowers the two-sided error, or leaves the codes as they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd2onnx.compression.descent import descend
from svd2onnx.compression.quantize import encode, search_steps
from svd2onnx.compression.rounding import widened
from svd2onnx.values.schema import QuantSpec

SPECS = (QuantSpec(4, 16), QuantSpec(2, 16), QuantSpec(8, 16))


def definite(seed: int, size: int, damping: float = 0.05) -> Tensor:
    """A positive definite matrix of strongly correlated coordinates."""
    samples = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(seed))
    samples = samples + 2 * samples[:, :1]
    moment = samples.T @ samples / len(samples)
    return moment + damping * moment.diagonal().mean() * torch.eye(size)


def start(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest codes, steps and limits at each of SPECS."""
    found = [search_steps(weight, spec)[0] for spec in SPECS]
    codes = torch.stack([encode(weight, s, spec).float() for s, spec in zip(found, SPECS, strict=True)])
    steps = torch.stack([widened(s, spec, weight.shape[1]) for s, spec in zip(found, SPECS, strict=True)])
    return codes, steps, torch.tensor([spec.code_range for spec in SPECS], dtype=torch.float32)


def losses(weight: Tensor, codes: Tensor, steps: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """tr(G D H D^T) of each setting, in float64."""
    change = (weight - codes * steps).double()
    return ((outputs.double() @ change @ inputs.double()) * change).sum((1, 2))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.integers(1, 13), st.sampled_from([1, 7, 70]), st.floats(-3, 3))
def test_the_error_never_grows_and_codes_stay_in_range(
    seed: int, rows: int, columns: int, log_size: float
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**log_size
    inputs, outputs = definite(seed, columns), definite(seed + 1, rows)
    codes, steps, limits = start(weight)
    before = codes.clone()
    better = descend(weight, codes, steps, limits, inputs, outputs, sweeps=2)
    assert torch.equal(codes, before)
    assert torch.equal(better, better.round())
    for own, (low, high) in zip(better, limits.tolist(), strict=True):
        assert low <= float(own.min())
        assert float(own.max()) <= high
    old, new = (losses(weight, c, steps, inputs, outputs) for c in (before, better))
    # The gradient is kept in float32: a move that gains nothing may lose its rounding.
    assert bool((new <= old * (1 + 1e-5)).all())


def test_it_pays_on_correlated_rows_and_columns() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    inputs, outputs = definite(1, 64), definite(2, 32)
    codes, steps, limits = start(weight)
    better = descend(weight, codes, steps, limits, inputs, outputs, sweeps=2)
    old, new = (losses(weight, c, steps, inputs, outputs) for c in (codes, better))
    assert bool((new < 0.6 * old).all())


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["positive", "negative"])
def test_no_code_can_be_improved_alone_in_the_end(sign: float) -> None:
    """With as many parts as rows, moves are single ones; the sign is that of the steps."""
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    inputs, outputs = definite(4, 12), definite(5, 4)
    codes, steps, limits = start(weight)
    codes, steps, limits = codes[:2] * sign, steps[:2] * sign, limits[:2]
    codes = torch.maximum(torch.minimum(codes, limits[:, 1, None, None]), limits[:, 0, None, None])
    better = descend(weight, codes, steps, limits, inputs, outputs, sweeps=30)
    assert not torch.equal(better, codes)
    least = losses(weight, better, steps, inputs, outputs)
    for row in range(4):
        for column in range(12):
            for move in (-1.0, 1.0):
                other = better.clone()
                other[:, row, column] += move
                inside = (other >= limits[:, :1, None]) & (other <= limits[:, 1:, None])
                allowed = inside.flatten(1).all(1)
                tried = losses(weight, other, steps, inputs, outputs)
                assert bool((tried[allowed] >= least[allowed] * (1 - 1e-5)).all())


def test_nearest_codes_stay_where_nothing_is_correlated() -> None:
    weight = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))
    codes, steps, limits = start(weight)
    inputs, outputs = torch.diag(torch.linspace(0.1, 3, 20)), torch.diag(torch.linspace(1, 2, 9))
    assert torch.equal(descend(weight, codes, steps, limits, inputs, outputs, sweeps=2), codes)


def test_settings_do_not_touch_one_another() -> None:
    weight = torch.randn(16, 70, generator=torch.Generator().manual_seed(0))
    inputs, outputs = definite(1, 70), definite(2, 16)
    codes, steps, limits = start(weight)
    together = descend(weight, codes, steps, limits, inputs, outputs, sweeps=2)
    for i in range(len(SPECS)):
        part = slice(i, i + 1)
        alone = descend(weight, codes[part], steps[part], limits[part], inputs, outputs, sweeps=2)
        assert torch.equal(alone[0], together[i])
