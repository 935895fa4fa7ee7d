"""Of two roundings that is taken which more outputs prefer on inputs that neither knows."""

import pytest
import torch
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.held_out import better_on
from svd2onnx.compression.quantize import quantize
from svd2onnx.compression.realize import realize_forms
from svd2onnx.values.schema import LayerForm, QuantSpec


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics(x: Tensor, held_out: Tensor | None) -> LayerStatistics:
    return LayerStatistics(len(x), x.double().mean(0), torch.cov(x.double().T), held_out=held_out)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_few_independent_inputs_are_not_fitted(bits: int) -> None:
    weight, spec = normal(0, 32, 64), QuantSpec(bits, 32)
    x, held_out, nearest = normal(1, 48, 64), normal(2, 64, 64), quantize(weight, spec)
    (fitted,) = realize_forms(weight, [LayerForm(spec)], statistics(x, None))
    (judged,) = realize_forms(weight, [LayerForm(spec)], statistics(x, held_out))
    assert fitted.dense is not None
    assert judged.dense is not None
    assert not torch.equal(fitted.dense.codes, nearest.codes)
    assert torch.equal(judged.dense.codes, nearest.codes)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_inputs_that_hang_together_are(bits: int) -> None:
    weight, spec, mix = normal(0, 32, 64), QuantSpec(bits, 32), normal(3, 8, 64)
    x, held_out = normal(1, 48, 8) @ mix, normal(2, 64, 8) @ mix
    (fitted,) = realize_forms(weight, [LayerForm(spec)], statistics(x, None))
    (judged,) = realize_forms(weight, [LayerForm(spec)], statistics(x, held_out))
    assert fitted.dense is not None
    assert judged.dense is not None
    assert torch.equal(judged.dense.codes, fitted.dense.codes)


def test_one_output_of_large_weights_does_not_decide_alone() -> None:
    weight, spec = normal(0, 5, 64), QuantSpec(4, 32)
    weight[0] *= 1000
    nearest, fine = quantize(weight, spec), quantize(weight, QuantSpec(8, 32))
    coarse = quantize(torch.cat([weight[:1], 0.5 * weight[1:]]), QuantSpec(8, 32))
    inputs = normal(1, 20, 64)
    assert better_on(inputs, weight, nearest, coarse) is nearest
    assert better_on(inputs, weight, nearest, fine) is fine
