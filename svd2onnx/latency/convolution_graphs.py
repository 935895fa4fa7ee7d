"""Graphs of one convolution alone, to time it: on floats, or in int8 as in the midst of a chain of such.

In a chain values come and go as codes, so such a graph takes and gives codes: no hop to float is timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from svd2onnx.graph import nodes
from svd2onnx.graph.export import OPSET
from svd2onnx.latency.layer_graphs import IR_VERSION, add_node
from svd2onnx.values.schema import Geometry

_STEP, _ZERO = np.float32(0.05), np.uint8(128)


def write_convolution_graph(
    path: Path,
    geometry: Geometry,
    shape: tuple[int, int],
    axes: Sequence[int],
    rank: int,
    copies: int,
    *,
    int8: bool = False,
) -> None:
    """Write a graph of ``copies`` convolutions side by side.

    Args:
        path: the file.
        geometry: of the convolution.
        shape: of its weight, [out, in / groups * kernel].
        axes: of its input, [batch, in, *space].
        rank: of a pair, or 0 for one convolution.
        copies: as of ``write_layer_graph``.
        int8: whether it computes on codes.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="layer")
    made = _Int8(graph) if int8 else _Float(graph)
    inner = (axes[1] // geometry.groups, *geometry.kernel)
    ones = tuple(1 for _ in geometry.kernel)
    attributes = {
        "strides": geometry.stride,
        "pads": geometry.padding,
        "dilations": geometry.dilation,
        "group": geometry.groups,
    }
    for i in range(copies):
        name = f"layer{i}"
        x = ir.Value(name=f"{name}.x", shape=ir.Shape(axes), type=ir.TensorType(made.dtype))
        graph.inputs.append(x)
        y = made.convolve(f"{name}.first", x, (rank or shape[0], *inner), attributes)
        if rank:
            y = made.convolve(f"{name}.second", y, (shape[0], rank, *ones), {})
        y.shape = ir.Shape([None] * len(axes))  # inferred when it is loaded; ONNX asks for a rank
        graph.outputs.append(y)
    ir.save(ir.Model(graph, ir_version=IR_VERSION), path)


class _Float:
    """Convolutions on floats, as those on stored codes are once the file is loaded."""

    dtype = ir.DataType.FLOAT

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._rng = graph, np.random.default_rng(0)

    def convolve(
        self, name: str, x: ir.Value, shape: tuple[int, ...], attributes: Mapping[str, Any]
    ) -> ir.Value:
        """A convolution of ``x`` with a random weight of ``shape``."""
        weight = self._rng.standard_normal(shape, dtype=np.float32)
        stored = nodes.initializer(self._graph, f"{name}.weight", weight, ir.DataType.FLOAT)
        return add_node(self._graph, "Conv", [x, stored], f"{name}.y", attributes)


class _Int8(_Float):
    """Convolutions that take codes and give codes."""

    dtype = ir.DataType.UINT8

    def convolve(
        self, name: str, x: ir.Value, shape: tuple[int, ...], attributes: Mapping[str, Any]
    ) -> ir.Value:
        codes = self._rng.integers(-127, 128, shape, dtype=np.int8)
        stored = nodes.initializer(self._graph, f"{name}.weight", codes, ir.DataType.INT8)
        scales = np.full(shape[0], 0.01, np.float32)
        scale = nodes.initializer(self._graph, f"{name}.scale", scales, ir.DataType.FLOAT)
        weight = add_node(self._graph, "DequantizeLinear", [stored, scale], f"{name}.float", {"axis": 0})
        step, zero = self._range()
        floats = add_node(self._graph, "DequantizeLinear", [x, step, zero], f"{name}.x.float")
        product = add_node(self._graph, "Conv", [floats, weight], f"{name}.product", attributes)
        result = add_node(self._graph, "QuantizeLinear", [product, step, zero], f"{name}.y")
        result.type = ir.TensorType(ir.DataType.UINT8)
        return result

    def _range(self) -> tuple[ir.Value, ir.Value]:
        known = self._graph.initializers
        return (
            known.get("step")
            or nodes.constant(self._graph, ir.Tensor(np.array(_STEP), dtype=ir.DataType.FLOAT, name="step")),
            known.get("zero")
            or nodes.constant(self._graph, ir.Tensor(np.array(_ZERO), dtype=ir.DataType.UINT8, name="zero")),
        )
