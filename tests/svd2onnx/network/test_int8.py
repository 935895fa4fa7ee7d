"""Int8 arithmetic in PyTorch gives what onnxruntime computes where it rounds, bit for bit."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from svd2onnx.compression.quantize import quantize
from svd2onnx.network.int8 import Int8Convolution, RoundedActivation, int8_codes, int8_weight
from svd2onnx.values.activation_range import ActivationRange, Int8Inputs
from svd2onnx.values.schema import CompressedLayer, QuantSpec

ENDS = st.floats(-50, 50, width=32)


def rounded_by_onnxruntime(x: np.ndarray, scale: float, zero: int) -> np.ndarray:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rounded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
            helper.make_tensor("zero", TensorProto.UINT8, [], [zero]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return y


@given(ENDS, ENDS)
def test_values_are_rounded_as_onnxruntime_does_it(a: float, b: float) -> None:
    own = ActivationRange(min(a, b), max(a, b))
    # Halfway between two codes as well, and beyond both ends.
    x = (np.arange(-600, 601, dtype=np.float32) / 2 * np.float32(own.scale)).astype(np.float32)
    ours = RoundedActivation(own)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(ours, rounded_by_onnxruntime(x, own.scale, own.zero))


@given(ENDS, ENDS)
def test_zero_stays_exact_and_the_range_is_covered(a: float, b: float) -> None:
    own = ActivationRange(min(a, b), max(a, b))
    rounded = RoundedActivation(own)
    assert float(rounded(torch.zeros(1))) == 0
    ends = torch.tensor([own.low, own.high])
    assert float((rounded(ends) - ends).abs().max()) <= own.scale * 1.001


def test_codes_use_the_whole_of_int8_and_an_output_of_zeros_has_a_scale() -> None:
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    codes, scale = int8_codes(weight)
    assert codes.dtype == torch.int8
    assert codes.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127, 127]
    assert bool((scale > 0).all())
    assert bool(((codes * scale[:, None] - weight).abs() <= scale[:, None] / 2 * 1.0001).all())


@pytest.mark.parametrize("rank", [None, 16])
def test_a_convolution_multiplies_by_the_weight_that_is_priced(rank: int | None) -> None:
    torch.manual_seed(0)
    original, spec = nn.Conv2d(8, 24, 3, padding=1), QuantSpec(4, 16)
    if rank is None:
        layer = CompressedLayer(
            (24, 72), quantize(original.weight.detach().flatten(1), spec), kind="convolution"
        )
    else:
        left, right = quantize(torch.randn(24, rank), spec), quantize(torch.randn(rank, 72), spec)
        layer = CompressedLayer((24, 72), left=left, right=right, kind="convolution")
    wide = ActivationRange(-100, 100)
    network = Int8Convolution(
        layer, original, Int8Inputs(ActivationRange(-1, 1), None if rank is None else wide)
    )
    x = torch.randint(-127, 128, (2, 8, 9, 9)) * ActivationRange(-1, 1).scale
    bias = original.bias
    assert bias is not None
    expected = nn.functional.conv2d(x, int8_weight(layer).reshape(24, 8, 3, 3), bias, padding=1)
    error = float((network(x) - expected.detach()).abs().max())
    # A pair rounds what is between the two; else only the bias is rounded, to steps of the products.
    allowed = 1e-3 if rank is None else 0.5 * wide.scale * float(layer.left.dequantize().abs().sum(1).max())  # type: ignore[union-attr]
    assert 0 < error <= allowed
