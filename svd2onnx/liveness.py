"""Which layers the output depends on: behind a layer of rank 0, which gives its bias alone, all is dead.

The exporter leaves dead layers out, so their weights are rightly missing in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def dead_layers(model: nn.Module, names: Iterable[str], example: Mapping[str, Tensor]) -> set[str]:
    """Those of the modules ``names`` that no gradient of the network's outputs reaches.

    Args:
        model: its forward must let gradients pass; where it does not, all modules seem dead.
        names: of modules with one output.
        example: the forward's arguments by name.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    for name in seen:

        def keep(_module: nn.Module, _args: Any, output: Tensor, name: str = name) -> Tensor:
            result = output if output.requires_grad else output.detach().requires_grad_()
            seen[name].append(result)
            return result.clone()  # what follows may change it in place

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        with torch.enable_grad():
            outputs = torch.utils._pytree.tree_leaves(model(**example))
    finally:
        for handle in handles:
            handle.remove()
    depending = [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]
    return set(seen) - _reached(depending, seen)


def _reached(outputs: Sequence[Tensor], seen: Mapping[str, Sequence[Tensor]]) -> set[str]:
    """Names of which a tensor gets a gradient; one pass tells of all."""
    own = [(name, tensor) for name, tensors in seen.items() for tensor in tensors]
    if not outputs or not own:
        return set()
    total = torch.stack([output.sum() for output in outputs]).sum()
    gradients = torch.autograd.grad(total, [tensor for _, tensor in own], allow_unused=True)
    return {name for (name, _), gradient in zip(own, gradients, strict=True) if gradient is not None}
