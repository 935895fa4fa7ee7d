"""Pairs are refitted to what rounding did to their other half; a correction is better than its dense term."""

import pytest
import torch
from torch import Tensor

from svd2onnx.calibration.moments import damp
from svd2onnx.compression.factors import Corrections, Target, quantized_pair
from svd2onnx.compression.lowrank import Weighting
from svd2onnx.compression.rounding import Curvature, round_second_order
from svd2onnx.values.schema import BITS, LayerForm, QuantSpec


def moment(seed: int, size: int) -> Tensor:
    """Of inputs with a few strong directions, float64, positive definite."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(400, 3, generator=generator) @ torch.randn(3, size, generator=generator)
    samples = (strong + torch.randn(400, size, generator=generator)).double()
    return damp(samples.T @ samples / 400, 0.05)


CURVATURES = {
    "inputs": Curvature(moment(1, 80)),
    "both": Curvature(moment(1, 80), damp(moment(2, 48), 1.0).float()),
}
WEIGHT = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))


def weighting_of(curvature: Curvature) -> Weighting:
    return Weighting(curvature.inputs, curvature.outputs)


def loss(change: Tensor, curvature: Curvature) -> float:
    """tr(G D H D^T), in float64."""
    change = change.double()
    sided = change if curvature.outputs is None else curvature.outputs.double() @ change
    return float((sided @ curvature.inputs * change).sum())


@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=CURVATURES)
@pytest.mark.parametrize(("bits", "most"), [(8, 1.002), (4, 1.25), (2, 4.5)])
def test_rounding_a_pair_costs_little(curvature: Curvature, bits: int, most: float) -> None:
    """Against the float pair, which is the best of its rank; and it beats rounding both to nearest."""
    spec = QuantSpec(bits, 32)
    factors = weighting_of(curvature).factorize(WEIGHT).truncate(32)
    left, right = quantized_pair(Target(WEIGHT, curvature), factors, spec)
    assert (left.codes.shape, right.codes.shape) == ((48, 32), (32, 80))
    assert left.spec == right.spec == spec
    ours = loss(WEIGHT - left.dequantize() @ right.dequantize(), curvature)
    best = loss(WEIGHT - factors.left @ factors.right, curvature)
    plain_left, plain_right = factors.quantize(spec)
    nearest = loss(WEIGHT - plain_left.dequantize() @ plain_right.dequantize(), curvature)
    assert best * 0.999 < ours < best * most
    assert ours - best < 0.6 * (nearest - best)


@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=CURVATURES)
@pytest.mark.parametrize(("bits", "share"), [(4, 0.7), (2, 0.6)])
def test_a_correction_is_better_than_its_dense_term_alone(
    curvature: Curvature, bits: int, share: float
) -> None:
    form = LayerForm(QuantSpec(bits, 32), 32, QuantSpec(4, 32))
    dense, left, right = Corrections(Target(WEIGHT, curvature), weighting_of(curvature), 32).quantized(form)
    assert (dense.spec, left.spec, right.codes.shape[0]) == (form.dense, form.factors, form.rank)
    product = left.dequantize() @ right.dequantize()
    (alone,) = round_second_order(WEIGHT, [QuantSpec(bits, 32)], curvature)
    whole = loss(WEIGHT - dense.dequantize() - product, curvature)
    assert whole < share * loss(WEIGHT - alone.dequantize(), curvature)


def test_corrections_of_several_ranks_are_as_good_as_each_alone() -> None:
    curvature = CURVATURES["both"]
    weighting = weighting_of(curvature)
    together = Corrections(Target(WEIGHT, curvature), weighting, 32)
    for rank in (16, 32):
        form = LayerForm(QuantSpec(2, 32), rank, QuantSpec(4, 16))
        alone = Corrections(Target(WEIGHT, curvature), weighting, rank)
        for ours, other in zip(together.quantized(form), alone.quantized(form), strict=True):
            assert torch.equal(ours.codes, other.codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [0, 5], ids=["zero", "rank 5"])
def test_weights_of_lower_rank_than_asked_for_leave_nothing_wrong(bits: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, rank, generator=generator) @ torch.randn(rank, 80, generator=generator)
    curvature, spec = CURVATURES["both"], QuantSpec(bits, 32)
    weighting = weighting_of(curvature)
    factors = weighting.factorize(weight).truncate(32)
    left, right = quantized_pair(Target(weight, curvature), factors, spec)
    size = max(loss(weight, curvature), 1e-12)
    assert loss(weight - left.dequantize() @ right.dequantize(), curvature) <= 0.3 * size
    form = LayerForm(spec, 32, QuantSpec(4, 32))
    dense, left, right = Corrections(Target(weight, curvature), weighting, 32).quantized(form)
    total = dense.dequantize() + left.dequantize() @ right.dequantize()
    assert loss(weight - total, curvature) <= 0.05 * size
