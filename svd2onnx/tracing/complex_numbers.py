"""Complex numbers as pairs of real ones, which ONNX has: z [...] becomes [..., 2], as in ``view_as_real``.

    (a + bi)(c + di)   =   (ac - bd) + (ad + bc)i

Rotary positions are often written so (Su et al., arXiv 2104.09864).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from svd2onnx.tracing.nodes import call

_ops = torch.ops.aten


def without_complex(graph: fx.Graph, tensors: dict[str, Any]) -> None:
    """Rewrite ``graph`` to compute with pairs, and put pairs in the place of complex ``tensors``.

    Where it holds an operator that is not known here, all stays as it is.
    """
    if not any(_is_complex(node) for node in graph.nodes):
        return
    pairs = _Pairs(graph, tensors)
    known = [node for node in graph.nodes if _is_complex(node) or pairs.reads_complex(node)]
    if all(pairs.knows(node) for node in known):
        for node in known:
            pairs.replace(node)
        for node in reversed(known):
            if not node.users:
                graph.erase_node(node)


class _Pairs:
    """The pair of each complex value of a graph."""

    def __init__(self, graph: fx.Graph, tensors: dict[str, Any]) -> None:
        self._graph, self._tensors = graph, tensors
        self._pair: dict[fx.Node, fx.Node] = {}
        self._made: dict[Any, Callable[..., fx.Node]] = {
            _ops.view_as_complex.default: lambda x: x,
            _ops.view_as_real.default: lambda z: self._pair[z],
            _ops.complex.default: lambda a, b: self._call(_ops.stack.default, [a, b], -1),
            _ops.polar.default: self._polar,
            _ops.mul.Tensor: self._product,
            _ops.slice.Tensor: self._along_axis(_ops.slice.Tensor),
            _ops.select.int: self._along_axis(_ops.select.int),
            _ops.unsqueeze.default: self._along_axis(_ops.unsqueeze.default),
            _ops.squeeze.dim: self._along_axis(_ops.squeeze.dim),
            _ops.transpose.int: lambda z, *axes: self._same(_ops.transpose.int, z, *map(_axis, axes)),
            _ops.permute.default: lambda z, axes: self._same(
                _ops.permute.default, z, [*map(_axis, axes), -1]
            ),
            _ops.view.default: lambda z, shape: self._same(_ops.reshape.default, z, [*shape, 2]),
            _ops.reshape.default: lambda z, shape: self._same(_ops.reshape.default, z, [*shape, 2]),
            _ops.expand.default: lambda z, shape: self._same(_ops.expand.default, z, [*shape, 2]),
            _ops.clone.default: lambda z, **_: self._same(_ops.clone.default, z),
            _ops.real.default: lambda z: self._part(z, 0),
            _ops.imag.default: lambda z: self._part(z, 1),
        }

    def reads_complex(self, node: fx.Node) -> bool:
        return any(_is_complex(own) for own in node.all_input_nodes)

    def knows(self, node: fx.Node) -> bool:
        return node.op == "get_attr" or (node.op == "call_function" and node.target in self._made)

    def replace(self, node: fx.Node) -> None:
        """Make the pair of ``node``, or what takes its place if that is real."""
        if node.op == "get_attr":
            self._pair[node] = self._constant(node)
            return
        with self._graph.inserting_before(node):
            made = self._made[node.target](*node.args, **node.kwargs)
        if _is_complex(node):
            self._pair[node] = made
        else:
            node.replace_all_uses_with(made)

    def _constant(self, node: fx.Node) -> fx.Node:
        name = f"{node.target}_as_real"
        self._tensors[name] = torch.view_as_real(self._tensors[str(node.target)].detach())
        with self._graph.inserting_before(node):
            pair = self._graph.get_attr(name)
        pair.meta["val"] = torch.view_as_real(node.meta["val"])
        return pair

    def _product(self, left: Any, right: Any) -> fx.Node:
        for own, other in ((left, right), (right, left)):
            if not (isinstance(other, fx.Node) and _is_complex(other)):
                factor = other
                if isinstance(other, fx.Node) and isinstance(other.meta["val"], Tensor):
                    factor = self._call(_ops.unsqueeze.default, other, -1)
                return self._call(_ops.mul.Tensor, self._pair[own], factor)
        (a, b), (c, d) = ([self._part(own, part) for part in (0, 1)] for own in (left, right))
        times, less, more = _ops.mul.Tensor, _ops.sub.Tensor, _ops.add.Tensor
        real = self._call(less, self._call(times, a, c), self._call(times, b, d))
        imaginary = self._call(more, self._call(times, a, d), self._call(times, b, c))
        return self._call(_ops.stack.default, [real, imaginary], -1)

    def _polar(self, size: fx.Node, angle: fx.Node) -> fx.Node:
        parts = [
            self._call(_ops.mul.Tensor, size, self._call(own, angle))
            for own in (_ops.cos.default, _ops.sin.default)
        ]
        return self._call(_ops.stack.default, parts, -1)

    def _along_axis(self, operator: Any) -> Callable[..., fx.Node]:
        return lambda z, axis=0, *rest: self._same(operator, z, _axis(axis), *rest)

    def _same(self, operator: Any, z: fx.Node, *arguments: Any) -> fx.Node:
        return self._call(operator, self._pair[z], *arguments)

    def _part(self, z: fx.Node, part: int) -> fx.Node:
        return self._call(_ops.select.int, self._pair[z], -1, part)

    def _call(self, operator: Any, *arguments: Any) -> fx.Node:
        return call(self._graph, operator, *arguments)


def _axis(axis: int) -> int:
    """Counted from behind, there is one more."""
    return axis if axis >= 0 else axis - 1


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_complex()
