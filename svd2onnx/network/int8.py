"""Int8 arithmetic in PyTorch, as an ONNX runtime does it with static ranges.

    x = (codes - zero) * scale        uint8 codes, one scale and zero point for the whole tensor
    W = codes * scales                int8 codes, one scale for each output
    b = codes * (scale of x * scales) int32 codes

The products of such codes are integers, and so are their sums: a runtime adds them up in int32. Here they are
multiplied as floats, which gives the same to float rounding. For the exporter each of these modules is a
DequantizeLinear, which onnxruntime fuses with the convolution between them to a QLinearConv.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx.network.convolution import Convolution, convolve, mix, without_weight
from svd2onnx.network.modules import shifted_bias
from svd2onnx.values.activation_range import STEPS, ActivationRange, Int8Inputs
from svd2onnx.values.schema import CompressedLayer, QuantizedTensor

LARGEST = 127
"""Code of an int8 weight."""
_OPSET = 21
TINY = 1e-30
"""The least scale, of a weight of zeros."""


class RoundedActivation(nn.Module):
    """Values rounded to the 256 codes of a range, and cut off at its ends.

    Where a convolution on floats gives them, they are cut off ``apart`` first. Onnxruntime (1.31) rounds the
    weights of a convolution between rounded values, all with one scale; where another node stands between, it
    does not.
    """

    scale: Tensor
    zero: Tensor
    low: Tensor | None

    def __init__(self, own: ActivationRange, *, apart: bool = False) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(-own.zero * own.scale) if apart else None)
        self.register_buffer("scale", torch.tensor(own.scale))
        self.register_buffer("zero", torch.tensor(own.zero, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        if self.low is not None:
            x = torch.maximum(x, self.low)
        if torch.compiler.is_exporting():
            codes = torch.onnx.ops.symbolic(
                "QuantizeLinear",
                (x, self.scale, self.zero),
                dtype=torch.uint8,
                shape=x.shape,
                version=_OPSET,
            )
            return _dequantized((codes, self.scale, self.zero))
        zero = self.zero.float()
        codes = (x / self.scale).round().clamp(-zero, STEPS - zero)
        return codes * self.scale


class _Codes(nn.Module):
    """A constant of integer codes with a scale for each output: called without arguments."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self) -> Tensor:
        """The constant, in the shape of its codes."""
        if torch.compiler.is_exporting():
            return _dequantized((self.codes, self.scale), axis=0)
        return self.codes * self.scale.reshape(-1, *(1 for _ in self.codes.shape[1:]))


class Int8Weight(_Codes):
    """A weight [out, in, *kernel] rounded to int8."""

    def __init__(self, tensor: QuantizedTensor, inner: Sequence[int]) -> None:
        codes, scale = int8_codes(tensor.dequantize())
        super().__init__(codes.reshape(len(codes), *inner), scale)


class Int8Bias(_Codes):
    """A bias [out] in steps of the products that it is added to."""

    def __init__(self, bias: Tensor, scale: Tensor) -> None:
        largest = torch.iinfo(torch.int32).max
        codes = (bias.double() / scale.double()).round().clamp(-largest, largest).int()
        super().__init__(codes, scale)


class Int8Convolution(nn.Module):
    """A compressed convolution on rounded inputs, or a pair with its inner values rounded too.

    Its own outputs are rounded elsewhere, behind an activation function that follows.
    """

    def __init__(
        self,
        layer: CompressedLayer,
        original: Convolution,
        inputs: Int8Inputs,
    ) -> None:
        super().__init__()
        self.geometry = without_weight(original)
        bias = None if original.bias is None else original.bias.detach()
        bias = shifted_bias(bias, layer)
        first = layer.dense or layer.right
        assert first is not None
        self.first = Int8Weight(first, original.weight.shape[1:])
        self.second = self.inner = self.bias = None
        last, step = self.first, inputs.x.scale
        if layer.left is not None:
            assert layer.dense is None and inputs.inner is not None
            self.inner = RoundedActivation(inputs.inner)
            inner = [layer.left.codes.shape[1], *(1 for _ in original.kernel_size)]
            self.second = last = Int8Weight(layer.left, inner)
            step = inputs.inner.scale
        if bias is not None:
            self.bias = Int8Bias(bias, last.scale * step)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, *space] -> [batch, out, *space]."""
        bias = None if self.bias is None else self.bias()
        if self.second is None or self.inner is None:
            return convolve(self.geometry, x, self.first(), bias)
        return mix(self.inner(convolve(self.geometry, x, self.first())), self.second(), bias)


def int8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` [out, in] as int8 codes [out, in] and a scale for each output, float32 [out]."""
    scale = (weight.abs().amax(dim=1) / LARGEST).clamp_min(TINY)
    return (weight / scale[:, None]).round().to(torch.int8), scale


def int8_weight(layer: CompressedLayer) -> Tensor:
    """The matrix [out, in] that a convolution in int8 multiplies by, of a layer with one term."""
    terms = [own for own in (layer.dense, layer.left, layer.right) if own is not None]
    rounded = [int8_codes(own.dequantize()) for own in terms]
    first, *others = (codes * scale[:, None] for codes, scale in rounded)
    return first @ others[0] if others else first


def _dequantized(inputs: Sequence[Tensor], axis: int | None = None) -> Tensor:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", inputs, attributes, dtype=torch.float32, shape=inputs[0].shape, version=_OPSET
    )
