"""Let the quantized MatMuls of an exported graph run in int8 arithmetic.

    MatMul(x, W)   =>   MatMulInteger(uint8(x / d), int8(d W)) times the scales of both,   W = codes * steps

The file still holds W in 8, 4 or 2 bits: its int8 form, with one scale for each output, follows from the
codes by nodes that onnxruntime folds when it loads the file. x is rounded on each call, with one scale and
one zero point for all of it (DynamicQuantizeLinear), so channels that are much larger than the others would
leave those few steps. Hence d, the root of each channel's RMS over calibration inputs: what x loses in
range, W takes over.

Source: SmoothQuant (Xiao et al., arXiv 2211.10438), with RMS in place of maxima and without the range of W.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from svd2onnx import nodes
from svd2onnx.calibrate import LayerStatistics
from svd2onnx.export import MATMULS, drop_inferable
from svd2onnx.schema import CompressedLayer

_LARGEST = 127.0
_TINY = 1e-30
_FLOOR = 1e-3
"""Of the mean RMS: channels that calibration hardly saw are not blown up."""


def to_integer(source: Path, output: Path, input_rms: Mapping[tuple[str, str], Tensor]) -> None:
    """Write the graph at ``source``, as ``export`` made it, to ``output`` in its int8 form.

    Args:
        source: its metadata name the MatMuls.
        output: may be ``source``.
        input_rms: of each input channel [k], by layer and factor; where it is missing, all are alike.
    """
    model = ir.load(source)
    entries = json.loads(model.metadata_props[MATMULS])
    by_node = {entry["node"]: entry for entry in entries}
    activations: dict[ir.Value, _Activations] = {}
    for node in [node for node in model.graph if node.name in by_node]:
        entry, x = by_node[node.name], node.inputs[0]
        assert x is not None
        if x not in activations:
            rms = input_rms.get((entry["layer"], entry["factor"]))
            activations[x] = _Activations(model.graph, node, x, rms)
        _multiply(model.graph, node, activations[x])
        entry["activations"] = "int8"
    RemoveUnusedNodesPass()(model)
    drop_inferable(model)
    model.metadata_props[MATMULS] = json.dumps(entries, separators=(",", ":"))
    ir.save(model, output)


def input_rms(
    layers: Mapping[str, CompressedLayer], statistics: Mapping[str, LayerStatistics]
) -> dict[tuple[str, str], Tensor]:
    """The RMS of every input channel of the MatMuls of ``layers``, float64, by layer and factor."""
    rms = {}
    for name, layer in layers.items():
        own = statistics.get(name)
        if layer.is_table or own is None or own.covariance is None or own.mean is None:
            continue
        covariance, mean = own.covariance.double(), own.mean.double()
        rms[name, "dense"] = rms[name, "right"] = (covariance.diagonal() + mean.square()).sqrt()
        if layer.right is not None:
            right = layer.right.dequantize().double()
            rms[name, "left"] = ((right @ covariance * right).sum(1) + (right @ mean).square()).sqrt()
    return rms


class _Activations:
    """What MatMuls of one input share: x / d as uint8, its scale and zero point, and d itself."""

    def __init__(self, graph: ir.Graph, first: ir.Node, x: ir.Value, rms: Tensor | None) -> None:
        self.divisors: ir.Value | None = None
        if rms is not None:
            divisors = _divisors(rms)
            inverse = nodes.initializer(graph, f"{x.name}.even", 1 / divisors, ir.DataType.FLOAT)
            self.divisors = nodes.initializer(graph, f"{x.name}.uneven", divisors[:, None], ir.DataType.FLOAT)
            x = nodes.insert(graph, first, "Mul", [x, inverse], f"{x.name}.evened")
        quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
        for output, part in zip(quantize.outputs, ("codes", "scale", "zero"), strict=True):
            output.name = f"{x.name}.{part}"
        graph.insert_before(first, quantize)
        self.codes, self.scale, self.zero = quantize.outputs


def _divisors(rms: Tensor) -> np.ndarray:
    """d [k], float32, of geometric mean 1."""
    root = rms.clamp_min(max(_FLOOR * float(rms.mean()), _TINY)).sqrt()
    evened: np.ndarray = (root / root.log().mean().exp()).to(torch.float32).numpy()
    return evened


def _multiply(graph: ir.Graph, node: ir.Node, x: _Activations) -> None:
    """Put the integer product in the place of the MatMul ``node``; its MatMulInteger takes the name."""
    name = node.name
    weight, scale = _integer_weight(graph, node, x.divisors)
    product = ir.node("MatMulInteger", [x.codes, weight, x.zero], name=name)
    product.outputs[0].name = f"{name}.sums"
    graph.insert_before(node, product)
    sums = nodes.insert(
        graph, node, "Cast", [product.outputs[0]], f"{name}.float", {"to": int(ir.DataType.FLOAT)}
    )
    scales = nodes.insert(graph, node, "Mul", [x.scale, scale], f"{name}.scales")
    result = nodes.insert(graph, node, "Mul", [sums, scales], f"{name}.product")
    nodes.replace(graph, node, result)


def _integer_weight(graph: ir.Graph, node: ir.Node, divisors: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """The int8 weight [k, n] and its scales [n], as nodes that onnxruntime folds at load."""
    stored = node.inputs[1]
    assert stored is not None
    dequantize = stored.producer()
    assert dequantize is not None
    codes, steps = dequantize.inputs
    assert codes is not None
    assert steps is not None
    assert codes.const_value is not None
    k, n = codes.const_value.shape.numpy()
    block = dequantize.attributes["block_size"].as_int()
    name, blocks = node.name, -(-k // block)

    def put(op_type: str, inputs: list[ir.Value], part: str) -> ir.Value:
        return nodes.insert(graph, node, op_type, inputs, f"{name}.{part}")

    def shape(part: str, *sizes: int) -> ir.Value:
        return nodes.shape(graph, f"{name}.{part}_shape", sizes)

    tall = put("Reshape", [steps, shape("tall", blocks, 1, n)], "tall")
    tall = put("Expand", [tall, shape("full", blocks, block, n)], "full")
    tall = put("Reshape", [tall, shape("long", blocks * block, n)], "long")
    if blocks * block > k:
        tall = put("Slice", [tall, shape("from", 0), shape("to", k)], "cut")
    weight = put("Mul", [nodes.cast_float(graph, node, codes, f"{name}.codes"), tall], "dequantized")
    if divisors is not None:
        weight = put("Mul", [weight, divisors], "uneven")
    largest = put("ReduceMax", [put("Abs", [weight], "magnitudes"), shape("axes", 0)], "largest")
    largest = put("Max", [largest, nodes.scalar(graph, f"{name}.tiny", _TINY)], "positive")
    scale = put("Div", [largest, nodes.scalar(graph, f"{name}.most", _LARGEST)], "column_scale")
    rounded = put("Round", [put("Div", [weight, scale], "in_steps")], "rounded")
    integers = nodes.insert(graph, node, "Cast", [rounded], f"{name}.int8", {"to": int(ir.DataType.INT8)})
    return integers, put("Reshape", [scale, shape("columns", n)], "column_scales")
