"""What takes a compressed layer's place in the PyTorch network.

Each module's float tensors equal the dequantized codes bit for bit, and are laid out as ONNX wants
them, so the exporter sees ordinary MatMul and Gather nodes, and putting DequantizeLinear before
them later cannot change a value.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.network.convolution import Convolution, convolve, mix
from svd2onnx.values.schema import CompressedLayer, QuantizedTensor


class CompressedLinear(nn.Module):
    """y = x D + (x R) L + b, with D [in, out], R [in, rank] and L [rank, out]; either term may be missing."""

    dense: Tensor | None
    right: Tensor | None
    left: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: CompressedLayer, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features = layer.shape[0]
        self.register_buffer("dense", _transposed(layer.dense))
        self.register_buffer("right", _transposed(layer.right))
        self.register_buffer("left", _transposed(layer.left))
        self.register_buffer("bias", _shifted(bias, layer))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor | None = None
        if self.dense is not None:
            y = torch.matmul(x, self.dense)
        if self.right is not None and self.left is not None:
            pair = torch.matmul(torch.matmul(x, self.right), self.left)
            y = pair if y is None else y + pair
        if y is None:
            y = x.new_zeros((*x.shape[:-1], self.out_features))
        return y if self.bias is None else y + self.bias


class CompressedConvolution(nn.Module):
    """y = conv(x, D) + mix(conv(x, R), L) + b; either term may be missing, L is a convolution of kernel 1.

    D is [out, in / groups, *kernel], R [rank, in, *kernel] and L [out, rank, 1, ...].
    """

    dense: Tensor | None
    right: Tensor | None
    left: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: CompressedLayer, original: Convolution) -> None:
        super().__init__()
        # Says how patches are taken, and keeps no weight.
        self.geometry = copy.copy(original)
        self.geometry._parameters = {"weight": None, "bias": None}
        kernel = original.weight.shape[1:]
        self.register_buffer("dense", _shaped(layer.dense, kernel))
        self.register_buffer("right", _shaped(layer.right, kernel))
        self.register_buffer("left", _shaped(layer.left, (-1, *(1 for _ in original.kernel_size))))
        bias = None if original.bias is None else original.bias.detach()
        self.register_buffer("bias", _shifted(bias, layer))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, *space] -> [batch, out, *space]."""
        dense = None if self.dense is None else convolve(self.geometry, x, self.dense, self.bias)
        if self.right is None or self.left is None:
            assert dense is not None
            return dense
        inner = convolve(self.geometry, x, self.right)
        if dense is None:
            return mix(inner, self.left, self.bias)
        return dense + mix(inner, self.left)


class CompressedEmbedding(nn.Module):
    """Rows of a dequantized table [rows, width]."""

    table: Tensor

    def __init__(self, layer: CompressedLayer) -> None:
        super().__init__()
        self.register_buffer("table", layer.weight())

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return functional.embedding(ids, self.table)


def _shifted(bias: Tensor | None, layer: CompressedLayer) -> Tensor | None:
    """The bias with the layer's correction of it."""
    if layer.bias_shift is None:
        return bias
    return layer.bias_shift if bias is None else bias + layer.bias_shift


def _shaped(tensor: QuantizedTensor | None, inner: Sequence[int]) -> Tensor | None:
    return None if tensor is None else tensor.dequantize().reshape(len(tensor.codes), *inner)


def _transposed(tensor: QuantizedTensor | None) -> Tensor | None:
    return None if tensor is None else tensor.dequantize().T.contiguous()
