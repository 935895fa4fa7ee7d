"""Operators that are added to a graph, each with a stand-in for what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

Step = tuple[Any, tuple[Any, ...]]
"""An operator of one tensor, and its further arguments."""


def call(graph: fx.Graph, operator: Any, *arguments: Any) -> fx.Node:
    """A node that calls ``operator``, where ``graph`` inserts; ``meta["val"]`` is what it gives there."""
    node = graph.call_function(operator, arguments)
    node.meta["val"] = operator(*fx.map_arg(arguments, lambda own: own.meta["val"]))
    return node


def call_steps(graph: fx.Graph, node: fx.Node, steps: Sequence[Step]) -> fx.Node:
    """``node`` after one of ``steps`` after the other."""
    for operator, arguments in steps:
        node = call(graph, operator, node, *arguments)
    return node
