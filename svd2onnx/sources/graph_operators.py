"""Operators of an exported graph that are layers: what module does the same.

    linear(x, w, b)                              nn.Linear
    matmul(x, m), addmm(b, x, m), m = w or w^T   nn.Linear
    conv1d, conv2d, conv3d, convolution          nn.Conv1d, nn.Conv2d, nn.Conv3d
    embedding(w, ids)                            nn.Embedding
    batch_norm(x, ...), layer_norm(x, ...)       nn.BatchNorm1d, 2d, 3d, nn.LayerNorm

where the weights are tensors of the program. All other operators stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

Tensors = dict[str, Tensor]
"""The tensors of a program by name."""
_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Layer:
    """A layer in a graph: its weight's name, its input, what makes the module, and what tells it apart."""

    weight: str
    input: fx.Node
    build: Callable[[], nn.Module]
    settings: tuple[Any, ...]


def layer_of(node: fx.Node, tensors: Tensors) -> Layer | None:
    """The layer that ``node`` is, with weights among ``tensors``; None for other operators."""
    make = _LAYERS.get(operator_of(node))
    return None if make is None else make(_bound(node), tensors)


def operator_of(node: fx.Node) -> str:
    """The operator that a node calls, without namespace and overload; empty where it calls none."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target).split(".")[1]


def _linear(a: dict[str, Any], tensors: Tensors) -> Layer | None:
    weight, bias = _name(a["weight"], tensors), _name(a["bias"], tensors)
    if weight is None or tensors[weight].ndim != 2 or (a["bias"] is not None and bias is None):
        return None
    return Layer(weight, a["input"], lambda: _linear_of(tensors, weight, bias, is_transposed=False), (bias,))


def _product(a: dict[str, Any], tensors: Tensors) -> Layer | None:
    """Of x with a matrix [in, out], or with the transposed of one."""
    x, matrix = a.get("mat1", a.get("self")), a.get("mat2", a.get("other"))
    added = a["self"] if "mat1" in a else None
    bias = _name(added, tensors)
    if a.get("alpha", 1) != 1 or a.get("beta", 1) != 1 or (added is not None and bias is None):
        return None
    turned = _is_transposing(matrix)
    weight = _name(matrix.args[0] if isinstance(matrix, fx.Node) and turned else matrix, tensors)
    if weight is None or tensors[weight].ndim != 2 or not isinstance(x, fx.Node):
        return None
    if bias is not None and tensors[bias].shape != tensors[weight].shape[0 if turned else 1 :][:1]:
        return None
    return Layer(
        weight, x, lambda: _linear_of(tensors, weight, bias, is_transposed=not turned), (bias, turned)
    )


def _convolution(a: dict[str, Any], tensors: Tensors) -> Layer | None:
    weight, bias = _name(a["weight"], tensors), _name(a["bias"], tensors)
    if weight is None or tensors[weight].ndim not in _CONVOLUTIONS or a.get("transposed"):
        return None
    if a["bias"] is not None and bias is None:
        return None
    w, dims = tensors[weight], tensors[weight].ndim - 2
    padding = a["padding"] if isinstance(a["padding"], str) else _spread(a["padding"], dims)
    stride, dilation, groups = _spread(a["stride"], dims), _spread(a["dilation"], dims), a["groups"]

    def build() -> nn.Module:
        module = _CONVOLUTIONS[w.ndim](
            w.shape[1] * groups, w.shape[0], tuple(w.shape[2:]), stride, padding, dilation, groups,
            bias is not None, device="meta",
        )  # fmt: skip
        return _with(module, weight=w, bias=None if bias is None else tensors[bias])

    return Layer(weight, a["input"], build, (bias, stride, padding, dilation, groups))


def _embedding(a: dict[str, Any], tensors: Tensors) -> Layer | None:
    weight = _name(a["weight"], tensors)
    if weight is None or tensors[weight].ndim != 2:
        return None

    def build() -> nn.Module:
        rows, width = tensors[weight].shape
        return _with(nn.Embedding(rows, width, device="meta"), weight=tensors[weight])

    return Layer(weight, a["indices"], build, ())


def _batch_norm(a: dict[str, Any], tensors: Tensors) -> Layer | None:
    parts = {name: _name(a[name], tensors) for name in ("weight", "bias", "running_mean", "running_var")}
    value = a["input"].meta.get("val")
    if None in parts.values() or a["training"] or not isinstance(value, Tensor) or value.ndim not in _NORMS:
        return None
    weight = parts["weight"]
    assert weight is not None

    def build() -> nn.Module:
        norm = _NORMS[value.ndim](len(tensors[weight]), eps=a["eps"], momentum=a["momentum"], device="meta")
        norm.num_batches_tracked = None
        return _with(norm, **{name: tensors[own] for name, own in parts.items() if own is not None})

    return Layer(weight, a["input"], build, (*parts.values(), a["eps"]))


def _layer_norm(a: dict[str, Any], tensors: Tensors) -> Layer | None:
    weight, bias = _name(a["weight"], tensors), _name(a["bias"], tensors)
    if weight is None or (a["bias"] is not None and bias is None):
        return None
    shape, eps = tuple(a["normalized_shape"]), a["eps"]

    def build() -> nn.Module:
        norm = nn.LayerNorm(shape, eps, bias=bias is not None, device="meta")
        return _with(norm, weight=tensors[weight], bias=None if bias is None else tensors[bias])

    return Layer(weight, a["input"], build, (bias, shape, eps))


_LAYERS: dict[str, Callable[[dict[str, Any], Tensors], Layer | None]] = {
    "linear": _linear,
    "matmul": _product,
    "mm": _product,
    "addmm": _product,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
}


def _bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by name, with the defaults of its schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    bound: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        bound[argument.name] = (
            node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
        )
    return bound


def _name(value: Any, tensors: Tensors) -> str | None:
    """The name of the tensor that a node reads, None if it is no tensor of the program."""
    if isinstance(value, fx.Node) and value.op == "get_attr" and value.target in tensors:
        return str(value.target)
    return None


def _is_transposing(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    kind, rest = str(node.target), list(node.args[1:])
    turns = kind == "aten.permute.default" and rest == [[1, 0]]
    swaps = kind == "aten.transpose.int" and sorted(d % 2 for d in rest if isinstance(d, int)) == [0, 1]
    return kind in ("aten.t.default", "aten.numpy_T.default") or turns or swaps


def _linear_of(tensors: Tensors, weight: str, bias: str | None, *, is_transposed: bool) -> nn.Module:
    w = tensors[weight]
    matrix = nn.Parameter(w.detach().T.contiguous(), requires_grad=False) if is_transposed else w
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None, device="meta")
    return _with(linear, weight=matrix, bias=None if bias is None else tensors[bias])


def _with(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """``module`` with these tensors as its own; what is a parameter there need not be one in a program."""
    for name, tensor in tensors.items():
        if isinstance(getattr(module, name), nn.Parameter) and tensor is not None:
            tensor = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        setattr(module, name, tensor)
    return module.eval()


def _spread(value: Sequence[int], dims: int) -> tuple[int, ...]:
    return tuple(value) * dims if len(value) == 1 else tuple(value)
