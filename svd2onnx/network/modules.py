"""What takes a compressed layer's place in the PyTorch network.

Each module's float tensors equal the dequantized codes bit for bit, and are laid out as ONNX wants
them, so the exporter sees ordinary MatMul and Gather nodes, and putting DequantizeLinear before
them later cannot change a value.

A weight that some other operator takes comes from a module of its own, a ``StoredWeight``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.network.convolution import Convolution, convolve, mix, without_weight
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
        self.register_buffer("bias", shifted_bias(bias, layer))

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
        self.geometry = without_weight(original)
        kernel = original.weight.shape[1:]
        self.register_buffer("dense", _shaped(layer.dense, kernel))
        self.register_buffer("right", _shaped(layer.right, kernel))
        self.register_buffer("left", _shaped(layer.left, (-1, *(1 for _ in original.kernel_size))))
        bias = None if original.bias is None else original.bias.detach()
        self.register_buffer("bias", shifted_bias(bias, layer))

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


STORED_DOMAIN, STORED_OP = "svd2onnx", "Stored"
"""The node behind a stored weight in the graph that the exporter makes, until its codes are there."""


class StoredWeight(nn.Module):
    """A weight of any shape that an operator takes which is no layer: it is called without arguments.

    As a matrix its first ``rows_of`` axes are the rows, and the others the columns: 1 of an LSTM's weight
    [4 hidden, in] or a transposed convolution's [in, out / groups, *kernel], 2 of a batch [experts, in, out].

    Raises:
        ValueError: there are no axes left for the columns, or none are given for the rows.
    """

    def __init__(self, weight: nn.Parameter, rows_of: int = 1) -> None:
        super().__init__()
        if not 1 <= rows_of < weight.ndim:
            raise ValueError(f"rows_of must be at least 1 and below the {weight.ndim} axes, not {rows_of}")
        self.weight, self.rows_of = weight, rows_of

    @property
    def matrix(self) -> Tensor:
        """The weight as a matrix [rows, columns]."""
        return self.weight.reshape(math.prod(self.weight.shape[: self.rows_of]), -1)

    def forward(self) -> Tensor:
        """The weight, in its shape."""
        return self.weight


def stored_at(model: nn.Module, name: str) -> StoredWeight:
    """The stored weight called ``name``."""
    module = model.get_submodule(name)
    assert isinstance(module, StoredWeight)
    return module


class CompressedStored(nn.Module):
    """A dequantized weight of ``shape``, kept as the matrix [rows, columns] that its codes are."""

    matrix: Tensor

    def __init__(self, layer: CompressedLayer, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("matrix", layer.weight())

    def forward(self) -> Tensor:
        """The weight, in its shape."""
        matrix = self.matrix
        if torch.compiler.is_exporting():
            # The exporter computes what it can of constants, such as an LSTM's weight with its gates in
            # another order, and the codes would not be found. It cannot behind a node that it does not know.
            matrix = torch.onnx.ops.symbolic(
                f"{STORED_DOMAIN}::{STORED_OP}", (matrix,), dtype=matrix.dtype, shape=matrix.shape, version=1
            )
        return matrix.reshape(self.shape)


def shifted_bias(bias: Tensor | None, layer: CompressedLayer) -> Tensor | None:
    """The bias with the layer's correction of it."""
    if layer.bias_shift is None:
        return bias
    return layer.bias_shift if bias is None else bias + layer.bias_shift


def _shaped(tensor: QuantizedTensor | None, inner: Sequence[int]) -> Tensor | None:
    return None if tensor is None else tensor.dequantize().reshape(len(tensor.codes), *inner)


def _transposed(tensor: QuantizedTensor | None) -> Tensor | None:
    return None if tensor is None else tensor.dequantize().T.contiguous()
