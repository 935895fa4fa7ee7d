"""Recurrent operators take sequences of any length, also while they are traced.

PyTorch finds the shapes of what they give by going through the sequence step by step, which fixes its length.
Here they are told from the sizes, as of the kernels that really run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import global_decomposition_table

from svd2onnx.values.errors import ExportError

_KEY = torch._C.DispatchKey.CompositeImplicitAutograd
_TABLE: dict[Any, Any] = global_decomposition_table["post_autograd"]


def _lstm(
    x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if hx[0].shape[-1] != hx[1].shape[-1]:
        raise ExportError(
            "forward runs an nn.LSTM with proj_size, and ONNX has no such operator: put an nn.Linear behind "
            "an nn.LSTM without it, or write the recurrence as a loop of products"
        )
    output, _ = _shapes(x, hx[0], settings)
    return output, torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _one_state(x: Tensor, hx: Tensor, params: Sequence[Tensor], *settings: Any) -> tuple[Tensor, Tensor]:
    return _shapes(x, hx, settings)


def _shapes(x: Tensor, state: Tensor, settings: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """An output [sequence, batch, directions * hidden], or [batch, sequence, ...], and the last state."""
    _has_biases, _layers, _dropout, _train, is_bidirectional, _batch_first = settings
    width = state.shape[-1] * (2 if is_bidirectional else 1)
    return x.new_empty((x.shape[0], x.shape[1], width)), torch.empty_like(state)


_OPERATORS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.lstm.input: _lstm,
    torch.ops.aten.gru.input: _one_state,
    torch.ops.aten.rnn_tanh.input: _one_state,
    torch.ops.aten.rnn_relu.input: _one_state,
}


@contextmanager
def any_length() -> Iterator[None]:
    """While it is entered, tracing finds these shapes; what is computed is the same.

    An LSTM with projections raises an ExportError, as the exporter would write another one.
    """
    kernels = {operator: operator.py_kernels.get(_KEY) for operator in _OPERATORS}
    entries = {operator: _TABLE.get(operator) for operator in _OPERATORS}
    try:
        for operator, shapes in _OPERATORS.items():
            operator.py_kernels[_KEY] = _TABLE[operator] = shapes
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator in _OPERATORS:
            for table, key, before in (
                (operator.py_kernels, _KEY, kernels[operator]),
                (_TABLE, operator, entries[operator]),
            ):
                table.pop(key, None)
                if before is not None:
                    table[key] = before
            operator._dispatch_cache.clear()
