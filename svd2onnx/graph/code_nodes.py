"""Codes and scales as initializers of an ONNX graph, and the nodes that make the scales factors.

Scales are stored as int8 (see ``scales``) and made floats by Cast and Mul, which onnxruntime folds when it
loads the file.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from svd2onnx.graph import nodes

_INTEGERS = {
    8: (np.int8, ir.DataType.INT8),
    4: (ml_dtypes.int4, ir.DataType.INT4),
    2: (ml_dtypes.int2, ir.DataType.INT2),
}

_SCALES = {
    torch.int8: ir.DataType.INT8,
    torch.float16: ir.DataType.FLOAT16,
    torch.float32: ir.DataType.FLOAT,
}


def codes(graph: ir.Graph, name: str, array: np.ndarray, bits: int) -> ir.Value:
    """Store the codes ``array`` under ``name``, in ``bits`` each."""
    dtype, ir_type = _INTEGERS[bits]

    def converted() -> ir.Tensor[np.ndarray]:
        return ir.Tensor(np.ascontiguousarray(array).astype(dtype), dtype=ir_type, name=name)

    # Made when it is written, because the codes of all layers take a byte each until then.
    return nodes.constant(
        graph, ir.LazyTensor(converted, dtype=ir_type, shape=ir.Shape(array.shape), name=name)
    )


def scales(graph: ir.Graph, name: str, scale: torch.Tensor) -> ir.Value:
    """Store ``scale`` under ``name``, in its own type."""
    return nodes.initializer(graph, name, scale.numpy(), _SCALES[scale.dtype])


def steps(graph: ir.Graph, node: ir.Node, scale: ir.Value, unit: ir.Value | None, name: str) -> ir.Value:
    """Stored scales as float32 factors; onnxruntime folds this at load where they are constant."""
    value = nodes.cast_float(graph, node, scale, f"{name}_float")
    if unit is None:
        return value
    factor = nodes.cast_float(graph, node, unit, f"{name}_unit")
    return nodes.insert(graph, node, "Mul", [value, factor], f"{name}_steps", {})


def unit_of(graph: ir.Graph, name: str, unit: torch.Tensor) -> ir.Value:
    """Store ``unit`` under ``name``, once."""
    return graph.initializers.get(name) or nodes.initializer(graph, name, unit.numpy(), _SCALES[unit.dtype])
