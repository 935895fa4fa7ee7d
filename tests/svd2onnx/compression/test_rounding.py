"""Second-order rounding loses less of a layer's outputs than rounding to nearest does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.moments import damp
from svd2onnx.compression.quantize import encode, quantize, search_steps
from svd2onnx.compression.rounding import Curvature, gptq_codes, round_second_order, widened
from svd2onnx.values.schema import QuantizedTensor, QuantSpec


def correlated_inputs(seed: int, width: int, count: int = 512) -> Tensor:
    """[count, width] with a few strong directions and unequal columns, float64."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(count, 4, generator=generator) @ torch.randn(4, width, generator=generator) * 3
    own = torch.randn(count, width, generator=generator) * torch.linspace(0.2, 2, width)
    return (strong + own).double()


def limits_of(spec: QuantSpec, rows: int) -> Tensor:
    return torch.tensor(spec.code_range, dtype=torch.float32).repeat(rows, 1)


def output_error(tensor: QuantizedTensor, weight: Tensor, moment: Tensor) -> float:
    """tr(D H D^T) with D = W - W~."""
    lost = (weight - tensor.dequantize()).double()
    return float((lost @ moment * lost).sum())


@pytest.mark.parametrize(("bits", "share"), [(4, 0.6), (2, 0.7)])
@pytest.mark.parametrize("width", [96, 160], ids=str)
def test_outputs_are_kept_better_than_by_rounding_to_nearest(bits: int, share: float, width: int) -> None:
    spec, x = QuantSpec(bits, 32), correlated_inputs(0, width)
    moment = x.T @ x / len(x)
    weight = torch.randn(64, width, generator=torch.Generator().manual_seed(1))
    nearest = quantize(weight, spec, moment.diagonal())
    (ours,) = round_second_order(weight, [spec], Curvature(damp(moment, 0.01)))
    assert output_error(ours, weight, moment) < share * output_error(nearest, weight, moment)


def test_with_uncorrelated_inputs_it_is_rounding_to_nearest() -> None:
    spec = QuantSpec(4, 32)
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(0))
    steps = search_steps(weight, spec)[0]
    curvature = Curvature(torch.diag(torch.linspace(1, 2, 96, dtype=torch.float64)))
    codes = gptq_codes(weight, widened(steps, spec, 96), limits_of(spec, 32), curvature)
    assert torch.equal(codes.to(torch.int8), encode(weight, steps, spec))


def test_two_columns_by_hand() -> None:
    """w = (0.4, 0.4), both scales 1, strongly correlated: one rounds down, the other up to make up for it."""
    moment = torch.tensor([[1.1, 1.0], [1.0, 1.0]], dtype=torch.float64)
    codes = gptq_codes(
        torch.tensor([[0.4, 0.4]]), torch.ones(1, 2), limits_of(QuantSpec(4, 32), 1), Curvature(moment)
    )
    assert codes.tolist() == [[0, 1]]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from([2, 4, 8]), st.sampled_from([32, 48, 70]))
def test_codes_stay_in_range_on_singular_moments(seed: int, bits: int, width: int) -> None:
    """Fewer samples than columns: the moment has no inverse of its own."""
    spec, x = QuantSpec(bits, 32), correlated_inputs(seed, width, count=8)
    weight = torch.randn(16, width, generator=torch.Generator().manual_seed(seed))
    (tensor,) = round_second_order(weight, [spec], Curvature(damp(x.T @ x / 8, 0.01)))
    low, high = spec.code_range
    assert low <= int(tensor.codes.min())
    assert int(tensor.codes.max()) <= high
    assert torch.isfinite(tensor.dequantize()).all()


def test_an_input_that_is_always_zero_does_no_harm() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    dead = LayerStatistics(8, torch.zeros(64), torch.zeros(64, 64, dtype=torch.float64))
    (tensor,) = round_second_order(weight, [QuantSpec(4, 32)], Curvature.of(dead))
    assert torch.isfinite(tensor.dequantize()).all()


def test_a_curvature_of_nearly_nothing_rounds_as_a_larger_one() -> None:
    """Factors that are rounded to zero leave one of 0 to the other."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    spec, x = QuantSpec(4, 32), correlated_inputs(0, 64)
    moment, limits = damp(x.T @ x / len(x), 0.05), limits_of(spec, 16)
    steps = torch.full_like(weight, 0.4)
    small, large = (gptq_codes(weight, steps, limits, Curvature(moment * s)) for s in (1e-300, 1.0))
    assert torch.equal(small, large)
    (none,) = round_second_order(weight, [spec], Curvature(damp(moment * 0, 1.0)))
    assert bool(torch.isfinite(none.dequantize()).all())


def test_damping_makes_a_singular_moment_definite() -> None:
    moment = torch.ones(8, 8, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(damp(moment, 0.01)).min()) == pytest.approx(0.01, rel=1e-6)


def two_sided(rows: int, width: int) -> Curvature:
    x, g = correlated_inputs(0, width), correlated_inputs(1, rows)
    return Curvature(damp(x.T @ x / len(x), 0.05), damp(g.T @ g / len(g), 1.0).float())


ALL_SPECS = [QuantSpec(bits, block) for bits in (8, 4, 2) for block in (32, 128)]


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 2**16), st.sampled_from([40, 70, 130]), st.booleans())
def test_settings_rounded_together_are_those_rounded_alone(seed: int, width: int, both_sides: bool) -> None:
    weight = torch.randn(12, width, generator=torch.Generator().manual_seed(seed))
    curvature = two_sided(12, width)
    if not both_sides:
        curvature = Curvature(curvature.inputs)
    together = round_second_order(weight, ALL_SPECS, curvature)
    for spec, tensor in zip(ALL_SPECS, together, strict=True):
        (alone,) = round_second_order(weight, [spec], curvature)
        assert tensor.spec == spec
        assert torch.equal(alone.codes, tensor.codes)
        assert torch.equal(alone.steps, tensor.steps)


@pytest.mark.parametrize("bits", [4, 2])
def test_the_outputs_side_counts(bits: int) -> None:
    """The two-sided error is lower where the rounding knows both sides."""
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    curvature = two_sided(24, 96)
    assert curvature.outputs is not None
    losses = []
    for known in (curvature, Curvature(curvature.inputs)):
        (tensor,) = round_second_order(weight, [QuantSpec(bits, 32)], known)
        change = (weight - tensor.dequantize()).double()
        losses.append(float((curvature.outputs.double() @ change @ curvature.inputs * change).sum()))
    assert losses[0] < 0.95 * losses[1]


def test_what_is_stored_is_what_was_rounded() -> None:
    """Codes lie on the steps that the file holds, so none is further than the clipping from its weight."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    (tensor,) = round_second_order(weight, [QuantSpec(8, 32)], Curvature.identity(64))
    low, high = tensor.spec.code_range
    steps = widened(tensor.steps, tensor.spec, 64)
    inside = (tensor.codes > low) & (tensor.codes < high)
    assert bool(((weight - tensor.dequantize()).abs() <= 0.5001 * steps.abs())[inside].all())
    assert int(inside.sum()) > 400


def test_a_curvature_mixes_both_moments_evenly() -> None:
    """Each moment counts as much as the other, whatever its units; damping makes it definite."""
    first = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    second = 1e6 * torch.diag(torch.tensor([0.0, 1.0]))
    mean = torch.zeros(2, dtype=torch.float64)
    statistics = LayerStatistics(8, mean, first, None, torch.eye(3) * 5, second)
    curvature = Curvature.of(statistics, damping=0.1)
    torch.testing.assert_close(curvature.inputs, torch.eye(2).double() * 2.2)
    torch.testing.assert_close(curvature.outputs, torch.eye(3) * 2)
    bare = Curvature.of(LayerStatistics(8, mean, first), damping=0.1)
    torch.testing.assert_close(bare.inputs, torch.diag(torch.tensor([2.1, 0.1])).double())
    assert bare.outputs is None
