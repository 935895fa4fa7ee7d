"""What graphs share that make a weight of constants when they are loaded."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from svd2onnx.graph import code_nodes, nodes
from svd2onnx.values.schema import QuantizedTensor


def weight_nodes(graph: ir.Graph, name: str, stored: str, tensor: QuantizedTensor) -> list[ir.Value]:
    """Add the nodes that make the float matrix of ``tensor``, which is the last of their values.

    They are called ``name``/...; the constants are called ``stored``..., because the name of a layer is long
    and would be written eight times. Mul(Cast(codes), blocks of steps) is computed once, at load.
    """
    first = next(iter(graph))  # before all others, because any of them may use it
    codes = code_nodes.codes(graph, f"{stored}.codes", tensor.codes.numpy(), tensor.spec.bits)
    scales = code_nodes.scales(graph, f"{stored}.scale", tensor.scale)
    unit = None if tensor.unit is None else code_nodes.unit_of(graph, f"{stored}.unit", tensor.unit)
    wide = nodes.cast_float(graph, first, codes, f"{name}/codes")
    steps = code_nodes.steps(graph, first, scales, unit, f"{name}/scale")
    made = [wide]
    if tensor.scale.shape[1] > 1:
        index = block_index(graph, first, tensor.codes.shape[1], tensor.spec.block_size)
        steps = nodes.insert(graph, first, "Gather", [steps, index], f"{name}/blocks", {"axis": 1})
        made.append(steps)
    made.append(nodes.insert(graph, first, "Mul", [wide, steps], f"{name}/product"))
    return made


def constants(graph: ir.Graph) -> set[ir.Value]:
    """What onnxruntime folds: initializers and what follows from them, but for DequantizeLinear.

    The nodes of ``graph`` are sorted.
    """
    constant = set(graph.initializers.values())
    for node in graph:
        folded = node.inputs and all(value is None or value in constant for value in node.inputs)
        if folded and node.op_type != "DequantizeLinear":
            constant.update(node.outputs)
    return constant


def block_index(graph: ir.Graph, before: ir.Node, width: int, block_size: int) -> ir.Value:
    """The block [width] that each of ``width`` weights is in; weights of equal width and blocks share it."""
    name = f"blocks.{width}.{block_size}"
    known = next((node.outputs[0] for node in graph if node.outputs[0].name == name), None)
    if known is not None:
        return known
    index = np.arange(width) // block_size
    narrow = np.min_scalar_type(index[-1])
    stored = nodes.initializer(graph, f"{name}.stored", index.astype(narrow), ir.DataType.from_numpy(narrow))
    return nodes.cast(graph, before, stored, ir.DataType.INT32, name)


def name_makers(made: Iterable[ir.Value]) -> None:
    """Call the nodes as what they make: by that ``certify`` knows them, should one of them ever run."""
    for value in made:
        producer = value.producer()
        assert producer is not None
        producer.name = value.name
