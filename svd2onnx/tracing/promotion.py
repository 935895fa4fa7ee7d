"""Types that an operator makes equal by itself, made equal before it, where torch.onnx (2.13) fails at it.

1.0 - mask, of integers or booleans, is ``rsub``: the exporter's promotion of types hands it on with its
arguments in the other order, and finds no such operator.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx


def with_equal_types(graph: fx.Graph) -> None:
    """Convert the tensor of each ``rsub`` that has another type than the result."""
    for node in list(graph.nodes):
        if node.target != torch.ops.aten.rsub.Scalar:
            continue
        own, result = node.args[0].meta.get("val"), node.meta.get("val")
        if isinstance(own, Tensor) and isinstance(result, Tensor) and own.dtype != result.dtype:
            with graph.inserting_before(node):
                converted = graph.call_function(torch.ops.aten.to.dtype, (node.args[0], result.dtype))
            converted.meta = {"val": own.to(result.dtype)}
            node.replace_input_with(node.args[0], converted)
