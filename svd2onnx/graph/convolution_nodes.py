"""Convolutions on stored codes: the weight is made a float once, when onnxruntime loads the file.

    Conv(x, W)   =>   Conv(x, Reshape(Mul(Cast(codes), blocks of steps), shape of W))

codes [out, in / groups * kernel] have one step for each block of a row. onnxruntime has no fused kernel for a
convolution of codes, and folds this chain of constants, so that the graph is as fast as the float one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from svd2onnx.graph import code_nodes, nodes
from svd2onnx.graph.constant_folding import block_index, name_makers
from svd2onnx.values.schema import QuantizedTensor


@dataclass(frozen=True)
class FoldedConvolution:
    """A Conv of n outputs, of k weights each, which nodes named ``weight``/... make at load."""

    node: str
    layer: str
    factor: str
    bits: int
    block_size: int
    k: int
    n: int
    weight: str
    operator: str = "folded"
    op: str = "Conv"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fold_convolution(
    graph: ir.Graph,
    node: ir.Node,
    layer: str,
    factor: str,
    tensor: QuantizedTensor,
    made: dict[tuple[str, str], ir.Value],
) -> FoldedConvolution:
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
    return FoldedConvolution(node.name, layer, factor, tensor.spec.bits, tensor.spec.block_size, k, n, maker)


def _weight(graph: ir.Graph, node: str, stored: str, tensor: QuantizedTensor, original: ir.Value) -> ir.Value:
    """The nodes are named by ``node``, because the layer's name is long and would be written eight times."""
    assert original.const_value is not None
    first = next(iter(graph))  # before all others, because further convolutions may use it
    codes = code_nodes.codes(graph, f"{stored}.codes", tensor.codes.numpy(), tensor.spec.bits)
    scales = code_nodes.scales(graph, f"{stored}.scale", tensor.scale)
    unit = None if tensor.unit is None else code_nodes.unit_of(graph, f"{stored}.unit", tensor.unit)
    name = f"{node}.weight"
    wide = nodes.cast_float(graph, first, codes, f"{name}/codes")
    steps = code_nodes.steps(graph, first, scales, unit, f"{name}/scale")
    made = [wide]
    if tensor.scale.shape[1] > 1:
        index = block_index(graph, first, tensor.codes.shape[1], tensor.spec.block_size)
        steps = nodes.insert(graph, first, "Gather", [steps, index], f"{name}/blocks", {"axis": 1})
        made.append(steps)
    made.append(nodes.insert(graph, first, "Mul", [wide, steps], f"{name}/product"))
    size = nodes.shape(graph, f"{name}.shape", original.const_value.shape.numpy())
    made.append(nodes.insert(graph, first, "Reshape", [made[-1], size], f"{name}/weight"))
    name_makers(made)
    return made[-1]
