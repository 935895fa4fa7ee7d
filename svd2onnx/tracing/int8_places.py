"""Which values of a network are rounded where some of its convolutions compute in int8.

    x -> [round] -> Conv -> Relu -> [round] -> MaxPool -> [round] -> Conv -> [round] -> Add -> [round] -> ...

A convolution in int8 takes rounded values and gives rounded ones. So does whatever lies between two of them
and has a kernel for 8 bits, so that nothing goes back to float on the way: each such hop costs two nodes.
What gives the very values that it takes, as MaxPool does, has their range too, and rounds nothing further. An
activation function that cuts off is part of what it follows: onnxruntime drops it where the range does so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx

from svd2onnx.tracing.operators import bound, operator_of
from svd2onnx.values.schema import LayerSite

_SELECTING = {"max_pool1d", "max_pool2d"}
_ARRANGING = {
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "contiguous",
}  # fmt: skip
"""With the former they give values that they take, and no others."""
_COMBINING = {"add", "cat", "avg_pool2d", "adaptive_avg_pool2d"}
_CUTTING = {"relu", "relu6", "hardtanh", "clamp"}


@dataclass(frozen=True)
class Place:
    """A value that is rounded, by the name of its node.

    ``range_of`` is the node whose range it has: its own, or that of what gives the same values. ``layers``
    are the convolutions that need it rounded.
    """

    node: str
    range_of: str
    layers: tuple[str, ...]


def int8_places(graph: fx.Graph, integer: Collection[str]) -> list[Place]:
    """Where values are rounded if the convolutions ``integer``, by name of module, compute in int8."""
    found = _Places(graph, integer)
    found.settle()
    return found.places()


def fit_for_int8(graph: fx.Graph, sites: Sequence[LayerSite]) -> set[str]:
    """The names of the sites that may compute in int8: convolutions over two axes.

    Left out are those whose values leave the network, which no one should round, and those that are called in
    several places, or in a part of the graph.
    """
    given = {node for out in graph.nodes if out.op == "output" for node in out.all_input_nodes}
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    # One that is called again would need the same range of inputs there.
    single = {name: own[0] for name, own in calls.items() if len(own) == 1}
    fit = {name for name, node in single.items() if given.isdisjoint({node, result_of(node)})}
    return {
        site.name
        for site in sites
        if site.geometry is not None and len(site.geometry.kernel) == 2 and fit.issuperset(site.names)
    }


def result_of(node: fx.Node) -> fx.Node:
    """What ``node`` gives: itself, or an activation function that alone reads it and cuts off."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _cuts(users[0]) else node


def _cuts(node: fx.Node) -> bool:
    """Whether its values lie between two bounds, of which zero is the lower, or some number below."""
    operator = operator_of(node).removesuffix("_")
    if operator not in _CUTTING:
        return False
    if operator in ("relu", "relu6"):
        return True
    own = bound(node)
    lower = own.get("min_val", own.get("min"))
    return isinstance(lower, int | float) and lower <= 0


class _Places:
    def __init__(self, graph: fx.Graph, integer: Collection[str]) -> None:
        self._graph, self._integer = graph, integer
        self._layers: dict[fx.Node, set[str]] = {}
        """Rounded nodes, and the convolutions that need them."""

    def settle(self) -> None:
        """Begin with what convolutions take and give, and go on until nothing more lies between."""
        convolutions = [
            node for node in self._graph.nodes if node.op == "call_module" and node.target in self._integer
        ]
        for node in convolutions:
            for own in (node.args[0], result_of(node)):
                self._layers.setdefault(own, set()).add(str(node.target))
        before = -1
        while before != len(self._layers):
            before = len(self._layers)
            for node in self._graph.nodes:
                self._join(node)

    def _join(self, node: fx.Node) -> None:
        """Round what ``node`` gives if it takes rounded values, and someone reads it who takes no others."""
        operator = operator_of(node).removesuffix("_")
        if operator not in _SELECTING | _ARRANGING | _COMBINING:
            return
        inputs, result = node.all_input_nodes, result_of(node)
        if result in self._layers or not all(own in self._layers for own in inputs):
            return
        if operator == "add" and len(inputs) != 2 and len(set(node.args[:2])) != 1:
            return  # a number is added
        readers = [user for user in result.users if self._takes_rounded(user)]
        if readers:
            self._layers[result] = set().union(*(self._layers[own] for own in inputs))

    def _takes_rounded(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return node.target in self._integer
        return (
            operator_of(node).removesuffix("_") in _SELECTING | _COMBINING and result_of(node) in self._layers
        )

    def places(self) -> list[Place]:
        return [
            Place(node.name, self._range_of(node).name, tuple(sorted(self._layers[node])))
            for node in self._graph.nodes
            if node in self._layers
        ]

    def _range_of(self, node: fx.Node) -> fx.Node:
        while operator_of(node) in _SELECTING | _ARRANGING and node.all_input_nodes[0] in self._layers:
            node = node.all_input_nodes[0]
        return node
