"""Let the quantized MatMuls of an exported graph run in int8 arithmetic.

    MatMul(x, W)   =>   MatMulInteger(uint8(x / d), int8(d W)) times the scales of both,   W = codes * steps

The file still holds W in 4 or 2 bits: its int8 form, with one scale for each output, follows from the codes
by nodes that onnxruntime folds when it loads the file. Of 8 bits the int8 form takes no more bytes, so it is
what the file holds. x is rounded on each call, with one scale and
one zero point for all of it (DynamicQuantizeLinear); ``planning.int8_error`` says what d evens out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.graph import nodes
from svd2onnx.graph.export import drop_inferable, save
from svd2onnx.graph.stored_matmuls import plan_again, planned
from svd2onnx.planning.int8_error import LARGEST, divisors, input_rms
from svd2onnx.values.schema import CompressedLayer, QuantizedTensor

_INT8 = 8
_TINY = 1e-30


def to_integer(
    source: Path,
    output: Path,
    layers: Mapping[str, CompressedLayer],
    statistics: Mapping[str, LayerStatistics],
) -> None:
    """Write the graph at ``source``, as ``export`` made it, to ``output`` with ``layers`` in their int8 form.

    Args:
        source: its metadata name the MatMuls.
        output: may be ``source``.
        layers: those of its compressed layers that shall compute in int8; the others stay as they are.
        statistics: of their inputs; where they are missing, all channels are alike.
    """
    model = ir.load(source)
    entries = planned(model)
    by_node = {entry["node"]: entry for entry in entries if entry["layer"] in layers}
    rms = {name: input_rms(layer, statistics.get(name)) for name, layer in layers.items()}
    activations: dict[ir.Value, _Activations] = {}
    for node in [node for node in model.graph if node.name in by_node]:
        entry, x = by_node[node.name], node.inputs[0]
        assert x is not None
        if x not in activations:
            activations[x] = _Activations(model.graph, node, x, rms[entry["layer"]].get(entry["factor"]))
        tensor = getattr(layers[entry["layer"]], entry["factor"])
        _multiply(model.graph, node, tensor, activations[x])
        entry["activations"] = "int8"
    RemoveUnusedNodesPass()(model)
    drop_inferable(model)
    plan_again(model, entries)
    save(model, output)


class _Activations:
    """What MatMuls of one input share: x / d as uint8, its scale and zero point, and d itself."""

    def __init__(self, graph: ir.Graph, first: ir.Node, x: ir.Value, rms: Tensor | None) -> None:
        self.divisors, self.uneven = None, None
        if rms is not None:
            self.divisors = divisors(rms).numpy()[:, None]
            inverse = nodes.initializer(graph, f"{x.name}.even", 1 / self.divisors[:, 0], ir.DataType.FLOAT)
            self.uneven = nodes.initializer(graph, f"{x.name}.uneven", self.divisors, ir.DataType.FLOAT)
            x = nodes.insert(graph, first, "Mul", [x, inverse], f"{x.name}.evened")
        quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
        for output, part in zip(quantize.outputs, ("codes", "scale", "zero"), strict=True):
            output.name = f"{x.name}.{part}"
        graph.insert_before(first, quantize)
        self.codes, self.scale, self.zero = quantize.outputs


def _multiply(graph: ir.Graph, node: ir.Node, tensor: QuantizedTensor, x: _Activations) -> None:
    """Put the integer product in the place of the MatMul ``node``; its MatMulInteger takes the name."""
    name = node.name
    weight, scale = _integer_weight(graph, node, tensor, x)
    product = ir.node("MatMulInteger", [x.codes, weight, x.zero], name=name)
    product.outputs[0].name = f"{name}.sums"
    graph.insert_before(node, product)
    sums = nodes.insert(
        graph, node, "Cast", [product.outputs[0]], f"{name}.float", {"to": int(ir.DataType.FLOAT)}
    )
    scales = nodes.insert(graph, node, "Mul", [x.scale, scale], f"{name}.scales")
    result = nodes.insert(graph, node, "Mul", [sums, scales], f"{name}.product")
    nodes.replace(graph, node, result)


def _integer_weight(
    graph: ir.Graph, node: ir.Node, tensor: QuantizedTensor, x: _Activations
) -> tuple[ir.Value, ir.Value]:
    """The int8 weight [k, n] and its scales [n]; of less than 8 bits, as nodes that are folded at load."""
    stored, name = node.inputs[1], node.name
    assert stored is not None
    dequantize = stored.producer()
    assert dequantize is not None
    codes, steps = dequantize.inputs
    assert codes is not None
    assert steps is not None
    weight = tensor.dequantize().T.numpy()
    if x.divisors is not None:
        weight = weight * x.divisors
    largest = np.maximum(np.abs(weight).max(axis=0) / LARGEST, _TINY)
    # Rounded up, so that no code exceeds the largest.
    scale = nodes.initializer(graph, f"{name}.columns", largest, ir.DataType.FLOAT)
    if tensor.spec.bits == _INT8:
        integers = np.rint(weight / largest).astype(np.int8)
        return nodes.initializer(graph, f"{name}.int8", integers, ir.DataType.INT8), scale
    wide = nodes.cast_float(graph, node, codes, f"{name}.wide")
    if x.uneven is not None:
        wide = nodes.insert(graph, node, "Mul", [wide, x.uneven], f"{name}.uneven")
    # One node multiplies by the step of the block, divides by the scale of the column, and rounds.
    ratio = nodes.insert(graph, node, "Div", [scale, steps], f"{name}.ratio")
    rounded = nodes.insert(
        graph,
        node,
        "QuantizeLinear",
        [wide, ratio],
        f"{name}.int8",
        {"axis": 0, "block_size": tensor.spec.block_size, "output_dtype": int(ir.DataType.INT8)},
    )
    return rounded, scale
