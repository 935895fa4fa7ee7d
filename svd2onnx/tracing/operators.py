"""Operators of a graph that are layers: what module does the same.

    linear(x, w, b)                              nn.Linear
    matmul(x, m), matmul(m, x), mm, mv, addmm    nn.Linear, m [in, out] or its transposed
    einsum("bld,df->blf", x, m)                  nn.Linear, where x, m and y share no axis
    conv1d, conv2d, conv3d, convolution          nn.Conv1d, nn.Conv2d, nn.Conv3d
    embedding(w, ids)                            nn.Embedding
    batch_norm(x, ...), layer_norm(x, ...)       nn.BatchNorm1d, 2d, 3d, nn.LayerNorm

where the weights depend on nothing but the network's parameters. All other operators stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from svd2onnx.tracing.constants import Constant, Constants
from svd2onnx.tracing.einsum import product_of
from svd2onnx.tracing.nodes import Step

_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_TURN: Step = (torch.ops.aten.transpose.int, (-1, -2))


@dataclass(frozen=True)
class Layer:
    """A layer in a graph.

    ``weights`` are its tensors by the names that its module has for them; the first is the weight.
    ``build`` makes the module, on the device "meta"; ``settings`` are what else tells it apart. ``before``
    is applied to its input, and ``after`` to its output.
    """

    input: fx.Node
    weights: dict[str, Constant]
    build: Callable[[], nn.Module]
    settings: tuple[Any, ...] = ()
    before: Sequence[Step] = ()
    after: Sequence[Step] = ()


def layer_of(node: fx.Node, constants: Constants) -> Layer | None:
    """The layer that ``node`` is, with weights among ``constants``; None for other operators."""
    make = _LAYERS.get(operator_of(node))
    return None if make is None else make(bound(node), constants)


def operator_of(node: fx.Node) -> str:
    """The operator that a node calls, without namespace and overload; empty where it calls none."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target).split(".")[1]


def bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by name, with the defaults of its schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        arguments[argument.name] = (
            node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
        )
    return arguments


def _linear(a: dict[str, Any], constants: Constants) -> Layer | None:
    weight = constants.of(a["weight"])
    if weight is None or weight.tensor.ndim != 2:
        return None
    return _linear_layer(a["input"], weight, a["bias"], constants)


def _product(a: dict[str, Any], constants: Constants) -> Layer | None:
    """A matrix on either side, with something added or not."""
    left, right = a.get("mat1", a.get("self")), a.get("mat2", a.get("other", a.get("vec")))
    added = a["self"] if "mat1" in a else None
    if a.get("alpha", 1) != 1 or a.get("beta", 1) != 1:
        return None
    matrix = constants.of(right)
    if matrix is not None and matrix.tensor.ndim == 2 and isinstance(left, fx.Node):
        return _linear_layer(left, _turned(matrix), added, constants)
    matrix = constants.of(left)
    if matrix is None or matrix.tensor.ndim != 2 or not isinstance(right, fx.Node):
        return None
    if _rank(right) == 1:
        return _linear_layer(right, matrix, added, constants)
    after: list[Step] = [_TURN]
    if added is not None:
        after.append((torch.ops.aten.add.Tensor, (added,)))
    return _linear_layer(right, matrix, None, constants, before=[_TURN], after=after)


def _einsum(a: dict[str, Any], constants: Constants) -> Layer | None:
    operands = a["tensors"]
    if len(operands) != 2:
        return None
    for own, other in (operands, operands[::-1]):
        matrix = constants.of(own)
        if matrix is None or not isinstance(other, fx.Node):
            continue
        product = product_of(a["equation"], operands.index(own), _rank(other), matrix.tensor)
        if product is None:
            return None
        weight = Constant(product.weight, matrix.names)
        return _linear_layer(other, weight, None, constants, before=product.before, after=product.after)
    return None


def _linear_layer(
    x: fx.Node,
    weight: Constant,
    added: Any,
    constants: Constants,
    *,
    before: Sequence[Step] = (),
    after: Sequence[Step] = (),
) -> Layer:
    """``weight`` [out, in]; what is ``added`` is a bias, or else added behind the layer."""
    out, width = weight.tensor.shape
    bias = constants.of(added)
    if bias is not None and bias.tensor.shape != (out,):
        bias = None
    if added is not None and bias is None:
        after = (*after, (torch.ops.aten.add.Tensor, (added,)))
    return Layer(
        x,
        {"weight": weight} | ({} if bias is None else {"bias": bias}),
        lambda: nn.Linear(width, out, bias is not None, device="meta"),
        before=before,
        after=after,
    )


def _convolution(a: dict[str, Any], constants: Constants) -> Layer | None:
    weight, bias = constants.of(a["weight"]), constants.of(a["bias"])
    if weight is None or weight.tensor.ndim not in _CONVOLUTIONS or a.get("transposed"):
        return None
    shape, dims = weight.tensor.shape, weight.tensor.ndim - 2
    if (a["bias"] is not None and bias is None) or _rank(a["input"]) != weight.tensor.ndim:
        return None
    padding = a["padding"] if isinstance(a["padding"], str) else _spread(a["padding"], dims)
    stride, dilation, groups = _spread(a["stride"], dims), _spread(a["dilation"], dims), a["groups"]

    def build() -> nn.Module:
        module: nn.Module = _CONVOLUTIONS[len(shape)](
            shape[1] * groups, shape[0], tuple(shape[2:]), stride, padding, dilation, groups,
            bias is not None, device="meta",
        )  # fmt: skip
        return module

    weights = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return Layer(a["input"], weights, build, (stride, padding, dilation, groups))


def _embedding(a: dict[str, Any], constants: Constants) -> Layer | None:
    weight = constants.of(a["weight"])
    if weight is None or weight.tensor.ndim != 2 or not isinstance(a["indices"], fx.Node):
        return None
    rows, width = weight.tensor.shape
    return Layer(a["indices"], {"weight": weight}, lambda: nn.Embedding(rows, width, device="meta"))


def _batch_norm(a: dict[str, Any], constants: Constants) -> Layer | None:
    names = ("weight", "bias", "running_mean", "running_var")
    parts = {name: constants.of(a[name]) for name in names if a[name] is not None}
    known = {name: part for name, part in parts.items() if part is not None}
    # Without statistics of its own it takes those of the batch, and has no module in evaluation.
    is_whole = len(known) == len(parts) and set(names[2:]) <= set(known)
    if not is_whole or a["training"] or _rank(a["input"]) not in _NORMS:
        return None

    def build() -> nn.Module:
        norm = _NORMS[_rank(a["input"])](
            len(known["running_mean"].tensor), a["eps"], a["momentum"], device="meta"
        )
        norm.num_batches_tracked = None
        for name in names[:2]:  # a module may have but one of the two
            if name not in known:
                norm.register_parameter(name, None)
        return norm

    return Layer(a["input"], known, build, (_rank(a["input"]), a["eps"], *known))


def _layer_norm(a: dict[str, Any], constants: Constants) -> Layer | None:
    weight, bias = constants.of(a["weight"]), constants.of(a["bias"])
    if weight is None or (a["bias"] is not None and bias is None):
        return None
    shape, eps = tuple(a["normalized_shape"]), a["eps"]
    weights = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return Layer(
        a["input"],
        weights,
        lambda: nn.LayerNorm(shape, eps, bias=bias is not None, device="meta"),
        (shape, eps),
    )


_LAYERS: dict[str, Callable[[dict[str, Any], Constants], Layer | None]] = {
    "linear": _linear,
    "matmul": _product,
    "mm": _product,
    "mv": _product,
    "addmm": _product,
    "einsum": _einsum,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
}


def _turned(matrix: Constant) -> Constant:
    return Constant(matrix.tensor.T, matrix.names)


def _rank(node: Any) -> int:
    """Of the tensor that a node gives; 0 if it gives none."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.ndim if isinstance(value, Tensor) else 0


def _spread(value: Sequence[int], dims: int) -> tuple[int, ...]:
    return tuple(value) * dims if len(value) == 1 else tuple(value)
