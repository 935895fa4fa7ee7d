"""What graphs share that make a weight of constants when they are loaded."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from svd2onnx.graph import nodes


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
