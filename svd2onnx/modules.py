"""What takes a compressed layer's place in the PyTorch network.

Each module's float tensors equal the dequantized codes bit for bit, and are laid out as ONNX wants
them, so the exporter sees ordinary MatMul and Gather nodes, and putting DequantizeLinear before
them later cannot change a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.schema import CompressedLayer, QuantizedTensor


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
        if layer.bias_shift is not None:
            bias = layer.bias_shift if bias is None else bias + layer.bias_shift
        self.register_buffer("bias", bias)

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


class CompressedEmbedding(nn.Module):
    """Rows of a dequantized table [rows, width]."""

    table: Tensor

    def __init__(self, layer: CompressedLayer) -> None:
        super().__init__()
        self.register_buffer("table", layer.weight())

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return functional.embedding(ids, self.table)


def _transposed(tensor: QuantizedTensor | None) -> Tensor | None:
    return None if tensor is None else tensor.dequantize().T.contiguous()
