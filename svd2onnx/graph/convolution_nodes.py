"""Convolutions on stored codes: the weight is made a float once, when onnxruntime loads the file.

    Conv(x, W)   =>   Conv(x, Reshape(Mul(Cast(codes), blocks of steps), shape of W))

codes [out, in / groups * kernel] have one step for each block of a row. onnxruntime has no fused kernel for a
convolution of codes, and folds this chain of constants, so that the graph is as fast as the float one.
"""

from __future__ import annotations

import onnx_ir as ir

from svd2onnx.graph import nodes
from svd2onnx.graph.constant_folding import name_makers, weight_nodes
from svd2onnx.graph.quantized_nodes import FoldedWeight
from svd2onnx.values.schema import QuantizedTensor


def fold_convolution(
    graph: ir.Graph,
    node: ir.Node,
    layer: str,
    factor: str,
    tensor: QuantizedTensor,
    made: dict[tuple[str, str], ir.Value],
) -> FoldedWeight:
    """Let the Conv ``node`` compute with the codes of ``tensor``.

    ``made`` are the weights so far, by layer and factor: convolutions of one weight share it.
    """
    original = node.inputs[1]
    assert original is not None and node.name is not None
    if (layer, factor) not in made:
        made[layer, factor] = _weight(graph, node.name, f"{layer}.{factor}", tensor, original)
    weight = made[layer, factor]
    node.replace_input_with(1, weight)
    n, k = tensor.codes.shape
    maker = str(weight.name).rpartition("/")[0]
    return FoldedWeight(node.name, layer, factor, tensor.spec.bits, tensor.spec.block_size, k, n, maker)


def _weight(graph: ir.Graph, node: str, stored: str, tensor: QuantizedTensor, original: ir.Value) -> ir.Value:
    assert original.const_value is not None
    first, name = next(iter(graph)), f"{node}.weight"
    made = weight_nodes(graph, name, stored, tensor)
    size = nodes.shape(graph, f"{name}.shape", original.const_value.shape.numpy())
    made.append(nodes.insert(graph, first, "Reshape", [made[-1], size], f"{name}/weight"))
    name_makers(made)
    return made[-1]
