"""What is done alike to every contender's graph: find the Linear weights, drop what computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass

from svd2onnx.graph.export import drop_inferable


def linear_nodes(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Each MatMul whose second input is a float32 matrix in the file, and that matrix [in, out]."""
    for node in tuple(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        tensor = weight.const_value if weight is not None and weight.is_initializer() else None
        if (
            weight is not None
            and tensor is not None
            and tensor.dtype == ir.DataType.FLOAT
            and len(tensor.shape) == 2
        ):
            yield node, weight


def input_name(node: ir.Node) -> str:
    """The name of what the MatMul ``node`` multiplies with its weight."""
    value = node.inputs[0]
    assert value is not None
    return str(value.name)


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Store ``tensor`` in ``graph`` under ``name``."""
    tensor.name = name
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def tidy(path: Path, output: Path | None = None) -> None:
    """Write the graph at ``path`` to ``output``, or in its place, without what blurs a comparison of sizes.

    That is the nodes and weights that lead to no output (onnxsim leaves the float weights behind), the
    exporter's notes on each node, and the shapes of all values, which some contenders keep and some drop.
    """
    model = ir.load(path)
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)
    drop_inferable(model)
    ir.save(model, output or path)


def tidy_bytes(path: Path) -> int:
    """The bytes that the graph at ``path`` has once it is tidied; the file itself stays as it is."""
    bare = path.with_suffix(".bare")
    tidy(path, bare)
    count = bare.stat().st_size
    bare.unlink()
    return count


def float_shapes(path: Path) -> set[tuple[int, ...]]:
    """The shapes of the float32 weights in the graph at ``path``."""
    tensors = (value.const_value for value in ir.load(path).graph.initializers.values())
    return {tuple(t.shape.numpy()) for t in tensors if t is not None and t.dtype == ir.DataType.FLOAT}
