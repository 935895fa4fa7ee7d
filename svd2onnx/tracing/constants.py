"""Tensors of a graph that depend on its parameters alone: a weight may be one, or be computed from some.

Weight normalization, parametrizations, low-rank adapters that are added, pruning masks, packed weights that
are taken apart, and weights kept in another type: all are computed once, here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

Place = tuple[Any, ...]
"""What tells a tensor from others: two of one place are the same numbers in the same order."""


@dataclass(frozen=True)
class Constant:
    """A tensor, and the names of the parameters and buffers that it is computed from."""

    tensor: Tensor
    names: tuple[str, ...]


class Constants:
    """Those of one graph, computed when they are asked for.

    Args:
        graph: its ``get_attr`` nodes name its tensors.
        tensors: what these are.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._known: dict[fx.Node, Any] = {}
        self._made: dict[str, Any] = {}
        self._written = {own for node in graph.nodes for own in written_by(node)}

    def of(self, value: Any) -> Constant | None:
        """What a node computes, if it is a tensor of floats that depends on parameters alone; else None."""
        if not isinstance(value, fx.Node):
            return None
        made = self._value(value)
        if not isinstance(made, Tensor) or not made.is_floating_point():
            return None
        names = tuple(dict.fromkeys(_names(value)))
        return Constant(made, names) if names else None

    def _value(self, node: fx.Node) -> Any:
        """What a node computes, None if that depends on an input, on chance or on what is written to."""
        if node not in self._known:
            # Of a chain of nodes the first comes first: they may be more than Python lets calls be nested.
            todo = [node]
            while todo:
                own = todo[-1]
                left = [arg for arg in own.all_input_nodes if arg not in self._known]
                if left and _is_computable(own):
                    todo.extend(left)
                    continue
                todo.pop()
                self._known[own] = None if own in self._written else self._computed(own)
        return self._known[node]

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._tensors.get(str(node.target))
        if not _is_computable(node) or any(self._known[arg] is None for arg in node.all_input_nodes):
            return None
        # A layer that is called twice computes its weight twice: it stays one weight.
        told = fx.map_arg((node.args, node.kwargs), lambda arg: id(self._known[arg]))
        key = f"{node.target} {told}"
        if key not in self._made:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: self._known[arg])
            with torch.no_grad():
                self._made[key] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._made[key]


def place_of(tensor: Tensor) -> Place:
    """See ``Place``."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def written_by(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes whose tensors ``node`` changes in place; of a view, also what it is a view of."""
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for own in _flat(value):
                    yield from _bases(own)


def _bases(value: Any) -> Iterator[fx.Node]:
    """A node, what it is a view of, and so on."""
    while isinstance(value, fx.Node):
        yield value
        if isinstance(value.target, torch._ops.OpOverload):
            taken = value.target._schema.arguments
            is_view = bool(taken) and taken[0].alias_info is not None
        else:
            is_view = value.target is operator.getitem
        if not is_view:
            return
        value = value.args[0]


def _flat(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _is_computable(node: fx.Node) -> bool:
    """Whether it is an operator that always gives the same for the same, and changes nothing."""
    if node.op != "call_function":
        return False
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return target is operator.getitem


def _names(node: fx.Node) -> Iterator[str]:
    """Of all that it is computed from, the nearest first."""
    todo, seen = [node], set()
    while todo:
        own = todo.pop(0)
        if own.op == "get_attr":
            yield str(own.target)
        todo.extend(arg for arg in own.all_input_nodes if arg not in seen)
        seen.update(own.all_input_nodes)
