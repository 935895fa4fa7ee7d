"""Small edits of an onnx-ir graph: add a constant, add a node before another one, replace one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


def insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    """Add a node before ``before``; its output is called ``name``, which is enough to find the node by."""
    node = ir.node(op_type, inputs, attributes=attributes or None)
    node.outputs[0].name = name
    node.outputs[0].type = inputs[0].type if op_type == "Gather" else ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return node.outputs[0]


def replace(graph: ir.Graph, node: ir.Node, result: ir.Value) -> None:
    """Put ``result`` in the place of the output of ``node``, under its name, and remove the node."""
    output = node.outputs[0]
    result.shape = output.shape
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = output.name


def cast_float(graph: ir.Graph, before: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """``value`` as float32; itself if it is that."""
    return cast(graph, before, value, ir.DataType.FLOAT, name)


def cast(graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    """``value`` as ``dtype``; itself if it is that."""
    if value.dtype == dtype:
        return value
    result = insert(graph, before, "Cast", [value], name, {"to": int(dtype)})
    result.type = ir.TensorType(dtype)
    return result


def shape(graph: ir.Graph, name: str, sizes: Sequence[int]) -> ir.Value:
    """A constant int64 vector, as Reshape and its like take it."""
    return initializer(graph, name, np.array(sizes, dtype=np.int64), ir.DataType.INT64)


def scalar(graph: ir.Graph, name: str, value: float) -> ir.Value:
    """A constant float32."""
    return initializer(graph, name, np.array(value, dtype=np.float32), ir.DataType.FLOAT)


def initializer(graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """Store ``array`` under ``name``."""
    return constant(graph, ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=name))


def constant(graph: ir.Graph, tensor: ir.Tensor[Any] | ir.LazyTensor) -> ir.Value:
    """Store ``tensor`` under its name."""
    value = ir.Value(
        name=tensor.name,
        shape=tensor.shape,
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def digest(array: np.ndarray) -> str:
    """What tells constants apart: by their shape and content."""
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
