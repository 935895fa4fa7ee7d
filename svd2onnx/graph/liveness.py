"""Which layers the output depends on: behind a layer of rank 0, which gives its bias alone, all is dead.

The exporter leaves dead layers out, so their weights are rightly missing in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks

from svd2onnx.network.outputs import tensors_of


def dead_layers(model: nn.Module, names: Iterable[str], example: Mapping[str, Tensor]) -> set[str]:
    """Those of the modules ``names`` that none of the network's outputs depends on.

    The graph that autograd notes in one forward pass tells; no gradient is computed, nor is anything kept
    to compute one.

    Args:
        model: its forward must let gradients pass; where it does not, all modules seem dead.
        names: of modules with one output.
        example: the forward's arguments by name.
    """
    nodes: dict[str, list[Node | None]] = {name: [] for name in names}
    handles = []
    for name in nodes:

        def note(_module: nn.Module, _args: Any, output: Tensor, name: str = name) -> Tensor:
            result = output if output.requires_grad else output.detach().requires_grad_()
            copy = result.clone()  # what follows may change it in place, and then it has another node
            nodes[name].append(copy.grad_fn)
            return copy

        handles.append(model.get_submodule(name).register_forward_hook(note))
    nothing = torch.empty(0)
    try:
        with torch.enable_grad(), saved_tensors_hooks(lambda _: nothing, lambda held: held):
            outputs = tensors_of(model(**example))
    finally:
        for handle in handles:
            handle.remove()
    alive = _with_ancestors(output.grad_fn for output in outputs)
    return {name for name, own in nodes.items() if alive.isdisjoint(own)}


def _with_ancestors(nodes: Iterable[Node | None]) -> set[Node]:
    """``nodes``, and all that they were computed from."""
    found: set[Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left.extend(before for before, _ in node.next_functions)
    return found
