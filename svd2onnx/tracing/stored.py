"""Weights of operators that are no layers: they are stored, and the operator takes what they are decoded to.

conv_transpose1d, 2d, 3d        [in, out / groups, *kernel]
lstm, gru, rnn_tanh, rnn_relu   [gates * hidden, in] and [gates * hidden, hidden]
lstm_cell, gru_cell, ...        likewise, of one step
embedding_bag                   [rows, width]
bmm, baddbmm, matmul, einsum    [experts, in, out]
bilinear                        [out, in, in]
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from svd2onnx.network.layers import SMALLEST_WEIGHT
from svd2onnx.tracing.constants import Constant, Constants
from svd2onnx.tracing.operators import operator_of

_BY_OUTPUT = {
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "embedding_bag", "_embedding_bag",
}  # fmt: skip
"""The first axis of their weights are the rows."""
_PRODUCTS = {"bmm", "baddbmm", "matmul", "einsum", "bilinear"}
"""Their weights have matrices in the last two axes."""


@dataclass(frozen=True)
class StoredArgument:
    """An argument of an operator that is a weight; its first ``rows_of`` axes are the rows of a matrix."""

    node: fx.Node
    weight: Constant
    rows_of: int


def stored_arguments(node: fx.Node, constants: Constants) -> list[StoredArgument]:
    """The weights among the arguments of ``node``; none of operators that are not known to have any."""
    operator = operator_of(node)
    if operator not in _BY_OUTPUT | _PRODUCTS:
        return []
    found = []
    for argument in node.all_input_nodes:
        weight = constants.of(argument)
        if weight is None or weight.tensor.ndim < 2 or weight.tensor.numel() < SMALLEST_WEIGHT["stored"]:
            continue
        rows_of = 1 if operator in _BY_OUTPUT else max(1, weight.tensor.ndim - 1)
        found.append(StoredArgument(argument, weight, rows_of))
    return found
