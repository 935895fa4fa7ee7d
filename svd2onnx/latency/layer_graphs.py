"""Graphs of one layer alone, in any form, to time it: what the exporter would write, with random content.

A layer's time depends on its shapes and its form, and not on what its weight holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.graph import nodes
from svd2onnx.graph.export import OPSET_INT2, list_matmuls
from svd2onnx.graph.int8_matmul import to_integer
from svd2onnx.graph.qdq import insert_dequantize
from svd2onnx.values.schema import CompressedLayer, LayerForm, QuantizedTensor, QuantSpec

IR_VERSION = 13


def write_layer_graph(
    path: Path,
    kind: str,
    shape: tuple[int, int],
    leading: Sequence[int],
    form: LayerForm | None,
    copies: int = 1,
) -> None:
    """Write a graph of ``copies`` layers side by side, each with a weight, an input and an output of its own.

    Args:
        path: the file.
        kind: "linear" or "embedding".
        shape: of the weight, [out, in] or [rows, width].
        leading: the axes of the input before the last, or those of the ids.
        form: None for float32.
        copies: so many layers that the call of a session is small beside them.
    """
    rng = np.random.default_rng(0)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET_INT2}, name="layer")
    layers = {}
    for i in range(copies):
        name = f"layer{i}"
        if form is None:
            weight = rng.standard_normal(shape, dtype=np.float32)
            terms = {"dense": weight}
        else:
            layers[name] = _random_layer(kind, shape, form, rng)
            terms = _terms(layers[name])
        _add_layer(graph, name, kind, shape, leading, terms)
    matmuls = insert_dequantize(graph, layers)
    model = ir.Model(graph, ir_version=IR_VERSION)
    list_matmuls(model, matmuls)
    ir.save(model, path)
    if form is not None and form.activations == "int8":
        to_integer(path, path, layers, {name: _statistics(shape[1]) for name in layers})


def _add_layer(
    graph: ir.Graph,
    name: str,
    kind: str,
    shape: tuple[int, int],
    leading: Sequence[int],
    terms: dict[str, np.ndarray],
) -> None:
    """One layer as PyTorch's exporter writes it, with float weights."""
    rows, columns = shape
    is_table = kind == "embedding"
    x = ir.Value(
        name=f"{name}.x",
        shape=ir.Shape(leading if is_table else [*leading, columns]),
        type=ir.TensorType(ir.DataType.INT64 if is_table else ir.DataType.FLOAT),
    )
    graph.inputs.append(x)
    if is_table:
        table = nodes.initializer(graph, f"{name}.table", terms["dense"], ir.DataType.FLOAT)
        y = add_node(graph, "Gather", [table, x], f"{name}.gathered")
        y.shape = ir.Shape([*leading, columns])
    else:
        y = _multiply(graph, name, x, rows, terms)
        if terms:  # of rank 0 the bias alone is left, in a shape of its own
            y.shape = ir.Shape([*leading, rows])
    graph.outputs.append(y)


def _multiply(graph: ir.Graph, name: str, x: ir.Value, rows: int, terms: dict[str, np.ndarray]) -> ir.Value:
    """The product and its bias."""
    bias = nodes.initializer(graph, f"{name}.bias", np.ones(rows, np.float32), ir.DataType.FLOAT)
    weights = {
        factor: nodes.initializer(graph, f"{name}.{factor}", weight.T, ir.DataType.FLOAT)
        for factor, weight in terms.items()
    }
    y = None
    if "dense" in weights:
        y = add_node(graph, "MatMul", [x, weights["dense"]], f"{name}.dense_product")
    if "right" in weights:
        inner = add_node(graph, "MatMul", [x, weights["right"]], f"{name}.right_product")
        pair = add_node(graph, "MatMul", [inner, weights["left"]], f"{name}.left_product")
        y = pair if y is None else add_node(graph, "Add", [y, pair], f"{name}.sum")
    return bias if y is None else add_node(graph, "Add", [y, bias], f"{name}.y")


def add_node(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    """Add a node at the end of ``graph``; its output, of floats, is called ``name``."""
    node = ir.node(op_type, inputs, attributes or None, name=f"node of {name}")
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    return node.outputs[0]


def _random_layer(
    kind: str, shape: tuple[int, int], form: LayerForm, rng: np.random.Generator
) -> CompressedLayer:
    rows, columns = shape

    def random(spec: QuantSpec, rows: int, columns: int) -> QuantizedTensor:
        low, high = spec.code_range
        codes = rng.integers(low, high, (rows, columns), dtype=np.int8, endpoint=True)
        scale = rng.integers(64, 128, (rows, spec.blocks(columns)), dtype=np.int8)
        unit = torch.full((1, 1), 2.0**-14)
        return QuantizedTensor(torch.from_numpy(codes), torch.from_numpy(scale), spec, unit)

    dense = random(form.dense, rows, columns) if form.dense else None
    if form.factors is None:
        return CompressedLayer(shape, dense, kind=kind)
    left, right = random(form.factors, rows, form.rank), random(form.factors, form.rank, columns)
    return CompressedLayer(shape, dense, left, right)


def _terms(layer: CompressedLayer) -> dict[str, np.ndarray]:
    tensors = {name: getattr(layer, name) for name in ("dense", "right", "left")}
    return {name: tensor.dequantize().numpy() for name, tensor in tensors.items() if tensor is not None}


def _statistics(width: int) -> LayerStatistics:
    """Of inputs that need evening out, as those of real layers do."""
    return LayerStatistics(1, torch.zeros(width), torch.diag(torch.linspace(0.5, 2, width)))
