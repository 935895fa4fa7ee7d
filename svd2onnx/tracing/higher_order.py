"""Parts of a graph that are run in another mode, as the tracer notes them: put into the graph itself."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from svd2onnx.values.errors import ExportError

_GRADIENTS, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def inline_modes(module: fx.GraphModule) -> None:
    """Gradients are wanted everywhere, and automatic types of another device change nothing here.

    Raises:
        ExportError: forward computes in another type under ``torch.autocast``.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or str(node.target) not in (_GRADIENTS, _AUTOCAST):
            continue
        if str(node.target) == _GRADIENTS:
            _enabled, inner, *arguments = node.args
        else:
            device, dtype, enabled, _cached, inner, *arguments = node.args
            if enabled and device == "cpu":
                kind = str(dtype or torch.get_autocast_dtype("cpu")).removeprefix("torch.")
                raise ExportError(
                    f"forward computes in {kind} under torch.autocast, and a file is compared in float32: "
                    "leave torch.autocast out of forward"
                )
        _inline(module, node, inner, arguments)


def _inline(module: fx.GraphModule, node: fx.Node, inner: Any, arguments: list[Any]) -> None:
    body = module.get_submodule(inner.target)
    assert isinstance(body, fx.GraphModule)
    inline_modes(body)
    places = [own for own in body.graph.nodes if own.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(places, arguments, strict=True))
    for own in body.graph.nodes:
        if own.op == "get_attr":
            name = f"{inner.target}.{own.target}"
            with module.graph.inserting_before(node):
                values[own] = module.graph.get_attr(name)
                values[own].meta = dict(own.meta)
    with module.graph.inserting_before(node):
        results = module.graph.graph_copy(body.graph, values)
    for user in list(node.users):
        if user.target is not operator.getitem:
            continue
        index = user.args[1]
        assert isinstance(results, tuple | list) and isinstance(index, int)
        user.replace_all_uses_with(results[index])
        module.graph.erase_node(user)
    if node.users:
        assert isinstance(results, fx.Node)
        node.replace_all_uses_with(results)
    module.graph.erase_node(node)
    if not inner.users:
        module.graph.erase_node(inner)
