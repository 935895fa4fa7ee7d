"""Plain recurrent layers (``nn.RNN``) as ONNX writes them, which torch.onnx (2.13) does not know.

h_t = f(W x_t + b + R h_{t-1} + c),     f = tanh or relu
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import onnxscript
import torch

op: Any = onnxscript.opset18
"""Lists become constants where it is called, which its types do not say."""


def _rnn(*arguments: Any, function: str) -> tuple[Any, Any]:
    """The output, and the last states [layers * directions, batch, hidden].

    ``arguments`` are those of ``aten::rnn_tanh.input``. Each direction of each layer has W [hidden, in],
    R [hidden, hidden] and, with biases, b and c [hidden].
    """
    x, hx, params, has_biases, layers, _dropout, _train, is_bidirectional, batch_first = arguments
    directions = 2 if is_bidirectional else 1
    count = len(params) // (layers * directions)
    own = [params[start : start + count] for start in range(0, len(params), count)]
    x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    states = []
    for start in range(0, layers * directions, directions):
        parts = own[start : start + directions]
        biases = _stacked([op.Concat(*part[2:], axis=0) for part in parts]) if has_biases else None
        y, state = op.RNN(
            x,
            _stacked([part[0] for part in parts]),
            _stacked([part[1] for part in parts]),
            biases,
            None,
            op.Slice(hx, [start], [start + directions], axes=[0]),
            activations=[function] * directions,
            direction="bidirectional" if is_bidirectional else "forward",
            hidden_size=hx.shape[2],
        )
        # [length, directions, batch, hidden]; 0 keeps an axis as it is.
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        states.append(state)
    x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    return x, op.Concat(*states, axis=0)


def _stacked(parts: Sequence[Any]) -> Any:
    return op.Concat(*(op.Unsqueeze(part, [0]) for part in parts), axis=0)


RECURRENT: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.rnn_tanh.input: functools.partial(_rnn, function="Tanh"),
    torch.ops.aten.rnn_relu.input: functools.partial(_rnn, function="Relu"),
}
"""Translations for ``torch.onnx.export``."""
