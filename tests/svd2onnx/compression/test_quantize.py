"""Rounding to blocks: bounded by half a step, stable when repeated, never worse than plain absmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd2onnx.compression.quantize import encode, quantize, search_steps
from svd2onnx.values.scales import ScaleGrid
from svd2onnx.values.schema import BITS, BLOCK_SIZES, QuantizedTensor, QuantSpec

specs = st.builds(QuantSpec, st.sampled_from(BITS), st.sampled_from(BLOCK_SIZES))
seeds = st.integers(0, 2**16)
widths = st.integers(1, 150)

# Relative errors of Gaussian weights in blocks of 32: measured 0.0054, 0.088 and 0.34, and
# 0.0057, 0.095 and 0.37 without the search, where squares leave the range of float32.
LARGEST_ERROR = {8: 0.006, 4: 0.10, 2: 0.38}


def gaussian(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def relative_error(tensor: QuantizedTensor, weight: Tensor) -> float:
    weight = weight.double()
    return float((tensor.dequantize().double() - weight).norm() / weight.norm())


def weighted_error(weight: Tensor, scale: Tensor, spec: QuantSpec, importance: Tensor) -> Tensor:
    """Of each block, [rows, blocks], in float64."""
    error = (
        QuantizedTensor(encode(weight, scale.float(), spec), scale, spec).dequantize().double()
        - weight.double()
    )
    cost = error.square() * importance.double()
    padded = torch.nn.functional.pad(cost, (0, -cost.shape[1] % spec.block_size))
    return padded.reshape(cost.shape[0], -1, spec.block_size).sum(-1)


@settings(deadline=None, max_examples=60)
@given(specs, seeds, widths, st.floats(-3, 3))
def test_an_unclipped_weight_is_off_by_half_a_step_at_most(
    spec: QuantSpec, seed: int, columns: int, log_step: float
) -> None:
    weight = gaussian(seed, 4, columns)
    scale = torch.full((4, spec.blocks(columns)), 10.0**log_step)
    codes = encode(weight, scale, spec)
    low, high = spec.code_range
    assert int(codes.min()) >= low
    assert int(codes.max()) <= high
    step = scale[0, 0]
    error = (codes.double() * step - weight).abs()
    inside = (weight >= (low - 0.5) * step) & (weight <= (high + 0.5) * step)
    assert bool((error[inside] <= 0.5 * step * (1 + 1e-6)).all())
    # What is clipped takes the nearest end of the range.
    assert bool((codes[weight > (high + 0.5) * step] == high).all())
    assert bool((codes[weight < (low - 0.5) * step] == low).all())


@settings(deadline=None, max_examples=60)
@given(specs, seeds, widths)
def test_quantizing_again_changes_nothing(spec: QuantSpec, seed: int, columns: int) -> None:
    memoize = quantize(gaussian(seed, 4, columns), spec)
    values = memoize.dequantize()
    assert torch.equal(encode(values, memoize.steps, spec), memoize.codes)
    again = quantize(values, spec)
    if spec.bits == 8:  # its search has no step for every extreme code, and needs none
        assert relative_error(again, values) < LARGEST_ERROR[8]
    else:
        assert torch.equal(again.dequantize(), values)


@settings(deadline=None, max_examples=60)
@given(specs, seeds, widths, st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_search_is_never_worse_than_the_largest_magnitude(
    spec: QuantSpec, seed: int, columns: int, size: float
) -> None:
    weight = gaussian(seed, 4, columns).pow(3) * size
    importance = gaussian(seed + 1, 1, columns).square()[0]
    found = search_steps(weight, spec, importance)[0]
    padded = torch.nn.functional.pad(weight, (0, -columns % spec.block_size))
    limit = padded.reshape(4, -1, spec.block_size).abs().amax(-1)
    plain = ScaleGrid.covering(limit / spec.code_range[1]).round(limit / spec.code_range[1])
    ours = weighted_error(weight, found, spec, importance)
    theirs = weighted_error(weight, plain, spec, importance)
    assert bool((ours <= theirs * (1 + 1e-4)).all())


@pytest.mark.parametrize("bits", BITS)
def test_the_search_pays(bits: int) -> None:
    """Over many Gaussian blocks, against scales of the largest magnitude, and for important columns."""
    spec, weight = QuantSpec(bits, 64), gaussian(0, 64, 256)
    ones = torch.ones(256)
    limit = weight.reshape(64, 4, 64).abs().amax(-1)
    plain = weighted_error(weight, limit / spec.code_range[1], spec, ones).sum()
    found = weighted_error(weight, search_steps(weight, spec)[0], spec, ones).sum()
    assert float(found / plain) < {8: 0.999, 4: 0.8, 2: 0.5}[bits]
    importance = torch.ones(256)
    importance[::8] = 100.0
    aware = weighted_error(weight, search_steps(weight, spec, importance)[0], spec, importance).sum()
    unaware = weighted_error(weight, search_steps(weight, spec)[0], spec, importance).sum()
    assert float(aware / unaware) < 0.999


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1e-25, 1e-10, 1.0, 1e3, 1e12, 1e25], ids=str)
def test_accuracy_does_not_depend_on_the_size_of_the_weights(bits: int, size: float) -> None:
    tensor = quantize(gaussian(0, 8, 64) * size, QuantSpec(bits, 32))
    assert relative_error(tensor, gaussian(0, 8, 64) * size) < LARGEST_ERROR[bits]
    assert tensor.scale.dtype == (torch.int8 if size in (1.0, 1e3) else torch.float32)


@pytest.mark.parametrize("bits", BITS)
def test_huge_importance_does_not_spoil_the_scales(bits: int) -> None:
    weight = gaussian(0, 8, 64) * 1e4
    tensor = quantize(weight, QuantSpec(bits, 32), torch.full((64,), 1e32))
    assert relative_error(tensor, weight) < LARGEST_ERROR[bits]


@pytest.mark.parametrize("bits", BITS)
def test_zeros_are_exact(bits: int) -> None:
    weight = gaussian(0, 6, 96)
    weight[2] = 0  # a whole row
    weight[4, 32:64] = 0  # a block
    tensor = quantize(weight, QuantSpec(bits, 32))
    values = tensor.dequantize()
    assert torch.equal(values[2], torch.zeros(96))
    assert torch.equal(values[4, 32:64], torch.zeros(32))
    assert bool((tensor.scale != 0).all())
    assert torch.equal(quantize(torch.zeros(3, 40), QuantSpec(bits, 16)).dequantize(), torch.zeros(3, 40))


@pytest.mark.parametrize("bits", BITS)
def test_a_partial_last_block_is_a_block_of_its_own(bits: int) -> None:
    weight, spec = gaussian(0, 5, 70), QuantSpec(bits, 32)
    whole, last = quantize(weight, spec), quantize(weight[:, 64:].contiguous(), spec)
    assert whole.codes.shape == (5, 70)
    assert whole.scale.shape == (5, 3)
    assert torch.equal(whole.codes[:, 64:], last.codes)
    torch.testing.assert_close(whole.steps[:, 2:], last.steps, rtol=0.05, atol=0)


def test_codes_are_those_of_the_rule_worked_by_hand() -> None:
    """-8 is a code and +8 is none, so the block's extreme weight decides the sign of the scale."""
    weight = torch.tensor([[-0.8, 0.7, 0.1, 0.0], [0.8, -0.7, -0.1, 0.0]]).repeat(1, 4)
    tensor = quantize(weight * 10, QuantSpec(4, 16))
    assert tensor.steps.tolist() == [[1.0], [-1.0]]
    assert tensor.codes[:, :4].tolist() == [[-8, 7, 1, 0], [-8, 7, 1, 0]]
