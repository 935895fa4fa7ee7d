"""A network whose convolutions compute in int8: values are rounded between them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

from torch import fx, nn

from svd2onnx.network.convolution import CONVOLUTIONS
from svd2onnx.network.int8 import RoundedActivation
from svd2onnx.network.modules import CompressedConvolution
from svd2onnx.tracing.int8_places import Place, result_of
from svd2onnx.values.activation_range import ActivationRange

_PREFIX = "behind"


def with_modules(network: fx.GraphModule, modules: Mapping[str, nn.Module]) -> fx.GraphModule:
    """``network`` with a module behind each of these nodes, by name; all who read one read what that gives.

    The parts are those of ``network``; the graph is a copy.
    """
    graph = copy.deepcopy(network.graph)
    nodes = {node.name: node for node in graph.nodes}
    names: dict[nn.Module, str] = {}
    result = fx.GraphModule(network, graph)
    for node_name, module in modules.items():
        if module not in names:
            names[module] = f"{_PREFIX}_{len(names)}"
            result.add_module(names[module], module)
        node = nodes[node_name]
        with graph.inserting_after(node):
            made = graph.call_module(names[module], (node,))
        for user in [user for user in node.users if user is not made]:
            user.replace_input_with(node, made)
    result.recompile()
    return result.eval()


def with_rounding(
    network: fx.GraphModule, places: Collection[Place], ranges: Mapping[str, ActivationRange]
) -> fx.GraphModule:
    """``network`` with values rounded at ``places``; ``ranges`` are by ``Place.range_of``."""
    floats = {
        result_of(node).name
        for node in network.graph.nodes
        if node.op == "call_module"
        and isinstance(network.get_submodule(str(node.target)), (*CONVOLUTIONS, CompressedConvolution))
    }
    modules: dict[tuple[str, bool], RoundedActivation] = {}
    behind = {}
    for place in places:
        key = place.range_of, place.node in floats
        if key not in modules:
            modules[key] = RoundedActivation(ranges[place.range_of], apart=key[1])
        behind[place.node] = modules[key]
    return with_modules(network, behind)


def input_ranges(
    graph: fx.Graph, places: Collection[Place], ranges: Mapping[str, ActivationRange]
) -> dict[str, ActivationRange]:
    """The range of what each convolution takes, by the name of its module, where all its calls have one."""
    of = {place.node: ranges[place.range_of] for place in places}
    found: dict[str, set[ActivationRange]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(node.args[0], fx.Node) and node.args[0].name in of:
            found.setdefault(str(node.target), set()).add(of[node.args[0].name])
    return {name: own.pop() for name, own in found.items() if len(own) == 1}
