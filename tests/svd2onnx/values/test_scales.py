"""Stored steps are exact in float32 and never 0, whatever the sizes of the blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd2onnx.values.scales import LARGEST, ScaleGrid, widen

seeds = st.integers(0, 2**16)


def magnitudes(seed: int, rows: int, spread: float, center: float, zeros: float) -> Tensor:
    """[rows, 6] whose logarithms (base 10) spread by ``spread`` about ``center``; a share is 0."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randn(rows, 6, generator=generator) * spread + center
    largest = 10 ** exponents.clamp(-35, 35)
    largest[torch.rand(rows, 6, generator=generator) < zeros] = 0
    return largest


@settings(deadline=None, max_examples=150)
@given(seeds, st.integers(1, 5), st.floats(0, 3), st.floats(-20, 20), st.sampled_from([0.0, 0.3, 1.0]))
def test_steps_are_exact_and_never_zero(
    seed: int, rows: int, spread: float, center: float, zeros: float
) -> None:
    largest = magnitudes(seed, rows, spread, center, zeros)
    grid = ScaleGrid.covering(largest)
    signs = torch.sign(torch.randn(largest.shape, generator=torch.Generator().manual_seed(seed)))
    steps = grid.round(largest * signs)
    assert steps.dtype == torch.float32
    assert bool(torch.isfinite(steps).all())
    assert bool((steps != 0).all())
    # Storing loses nothing more.
    stored = grid.store(steps)
    assert stored.dtype == grid.dtype
    assert torch.equal(widen(stored, grid.unit), steps)
    unit = 1.0 if grid.unit is None else grid.unit.numpy().astype(np.float64)
    np.testing.assert_array_equal(stored.numpy().astype(np.float64) * unit, steps.numpy().astype(np.float64))


@settings(deadline=None, max_examples=150)
@given(seeds, st.integers(1, 5), st.floats(0, 1), st.floats(-6, 6))
def test_steps_are_the_nearest_and_the_typical_one_is_near(
    seed: int, rows: int, spread: float, center: float
) -> None:
    largest = magnitudes(seed, rows, spread, center, 0.0)
    grid = ScaleGrid.covering(largest)
    error = (grid.round(largest) - largest).abs() / largest
    assert float(error.median()) <= 0.5 / 24 + 1e-6
    if grid.unit is None:
        return
    unit = grid.unit.float()
    assert torch.equal(torch.exp2(torch.log2(unit).round()), unit)
    assert unit.shape in ((1, 1), (rows, 1))
    off = (grid.round(largest) - largest).abs()
    assert bool((off <= torch.where(largest < unit, unit, unit / 2) * (1 + 1e-6)).all())
    # The largest of all is not clipped.
    assert float((largest / unit).max()) <= LARGEST * (1 + 1e-6)


def test_unlike_rows_get_units_of_their_own() -> None:
    largest = torch.tensor([[1.0, 0.9], [1e-3, 0.9e-3]])
    grid = ScaleGrid.covering(largest)
    assert grid.dtype == torch.int8
    assert grid.unit is not None
    assert grid.unit.tolist() == [[2.0**-6], [2.0**-16]]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e-7, torch.float32), (1.0, torch.int8), (1e5, torch.int8), (1e12, torch.float32)],
    ids=str,
)
def test_bytes_wherever_a_float16_unit_reaches(size: float, dtype: torch.dtype) -> None:
    assert ScaleGrid.covering(torch.tensor([[size, size * 0.8]])).dtype == dtype


def test_rows_of_wide_range_fall_back_to_float16() -> None:
    largest = torch.tensor([[1.0, 1e-2, 1e-2, 1e-2]])
    grid = ScaleGrid.covering(largest)
    assert (grid.dtype, grid.unit) == (torch.float16, None)
    torch.testing.assert_close(grid.round(largest), largest, rtol=1e-3, atol=0)


def test_zeros_ask_for_nothing() -> None:
    grid = ScaleGrid.covering(torch.zeros(3, 2))
    assert bool((grid.round(torch.zeros(3, 2)) != 0).all())
    mixed = torch.tensor([[0.0, 0.0], [0.5, 0.4]])
    assert ScaleGrid.covering(mixed).unit == ScaleGrid.covering(mixed[1:]).unit
