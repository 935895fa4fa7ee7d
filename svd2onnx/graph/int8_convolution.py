"""Convolutions in int8: what the file holds are codes of few bits, and their int8 form is made at load.

    Conv(x, DequantizeLinear(int8 W, scales), DequantizeLinear(int32 b, scales of both))

    W = codes * steps      scales = max |W| / 127, for each output      int8 W = QuantizeLinear(W, scales)

onnxruntime computes what follows from constants, and then makes a QLinearConv of the rest. The scales take no
bytes: they follow from the codes, and those of the bias from theirs and from the range of x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from svd2onnx.graph import nodes
from svd2onnx.graph.constant_folding import name_makers, weight_nodes
from svd2onnx.graph.quantized_nodes import FoldedInt8Weight
from svd2onnx.network.int8 import LARGEST, TINY, int8_codes
from svd2onnx.values.errors import ExportError
from svd2onnx.values.schema import CompressedLayer, QuantizedTensor

ROUNDED = "rounded."
"""What the names of rounded values begin with, before a number."""
_Planned = tuple[str, str, QuantizedTensor]


def store_codes(graph: ir.Graph, layers: Mapping[str, CompressedLayer]) -> list[FoldedInt8Weight]:
    """Put the codes of ``layers``, by site name, in the place of the int8 weights that were made of them.

    Raises:
        ExportError: a weight is not in the graph.
    """
    wanted: dict[str, list[_Planned]] = {}
    for name, layer in layers.items():
        for factor in ("dense", "right", "left"):
            tensor: QuantizedTensor | None = getattr(layer, factor)
            if tensor is not None:
                key = nodes.digest(int8_codes(tensor.dequantize())[0].numpy())
                wanted.setdefault(key, []).append((name, factor, tensor))
    missing = {name for planned in wanted.values() for name, _, _ in planned}
    made: list[FoldedInt8Weight] = []
    for initializer in list(graph.initializers.values()):
        planned = wanted.get(_digest_of(initializer))
        if planned is None:
            continue
        # Layers of equal codes take turns, so that each is named once.
        name, factor, tensor = planned.pop(0) if len(planned) > 1 else planned[0]
        missing.discard(name)
        made += _store(graph, initializer, name, factor, tensor)
        graph.initializers.pop(str(initializer.name))
    if missing:
        raise ExportError(
            f"the exported graph does not hold the int8 weights of: {', '.join(sorted(missing))}; "
            "leave these layers in float with --exclude, or use --activations float"
        )
    return made


def _store(
    graph: ir.Graph, initializer: ir.Value, layer: str, factor: str, tensor: QuantizedTensor
) -> list[FoldedInt8Weight]:
    users = [node for node, _ in initializer.uses()]
    convolutions = [user for node in users for user, _ in node.outputs[0].uses()]
    first, name = next(iter(graph)), f"{convolutions[0].name}.weight"
    made = weight_nodes(graph, name, f"{layer}.{factor}", tensor)
    shape = initializer.shape
    assert shape is not None
    rows, full, least = _numbers(graph)
    size = nodes.insert(graph, first, "Abs", [made[-1]], f"{name}/size")
    largest = nodes.insert(graph, first, "ReduceMax", [size, rows], f"{name}/largest", {"keepdims": 0})
    share = nodes.insert(graph, first, "Div", [largest, full], f"{name}/share")
    scale = nodes.insert(graph, first, "Max", [share, least], f"{name}/step")
    attributes = {"axis": 0, "output_dtype": int(ir.DataType.INT8)}
    rounded = nodes.insert(graph, first, "QuantizeLinear", [made[-1], scale], f"{name}/int8", attributes)
    wanted = nodes.shape(graph, f"{name}.shape", shape.numpy())
    weight = nodes.insert(graph, first, "Reshape", [rounded, wanted], f"{name}/weight")
    for value in (rounded, weight):
        value.type = ir.TensorType(ir.DataType.INT8)
    name_makers([*made, size, largest, share, scale, rounded, weight])
    for node in users:
        node.replace_input_with(0, weight)
        _replace_scale(graph, node, scale)
    for node in convolutions:
        _follow(graph, node, scale)
    (n, k), spec = tensor.codes.shape, tensor.spec
    stored = FoldedInt8Weight("", layer, factor, spec.bits, spec.block_size, k, n, name)
    return [replace(stored, node=str(node.name)) for node in convolutions]


def _follow(graph: ir.Graph, convolution: ir.Node, scale: ir.Value) -> None:
    """Let the scales of the bias be what they are: those of the weight times that of the inputs."""
    x, bias = convolution.inputs[0], convolution.inputs[2] if len(convolution.inputs) > 2 else None
    if x is None or bias is None:
        return
    dequantize, rounded = bias.producer(), x.producer()
    assert dequantize is not None and rounded is not None
    step = rounded.inputs[1]
    assert step is not None
    own = nodes.insert(graph, next(iter(graph)), "Mul", [scale, step], f"{convolution.name}.bias/scale")
    _replace_scale(graph, dequantize, own)


def _replace_scale(graph: ir.Graph, dequantize: ir.Node, scale: ir.Value) -> None:
    """Let the node take ``scale``; the one that the exporter stored goes where no other node takes it."""
    stored = dequantize.inputs[1]
    assert stored is not None
    dequantize.replace_input_with(1, scale)
    if not stored.uses():
        graph.initializers.pop(str(stored.name))


def _numbers(graph: ir.Graph) -> tuple[ir.Value, ir.Value, ir.Value]:
    """What all scales are made with: the axis of inputs, the largest code, and the least scale."""
    rows = graph.initializers.get("int8.axes") or nodes.shape(graph, "int8.axes", [1])
    full = graph.initializers.get("int8.largest") or nodes.scalar(graph, "int8.largest", LARGEST)
    least = graph.initializers.get("int8.least") or nodes.scalar(graph, "int8.least", TINY)
    return rows, full, least


def _digest_of(initializer: ir.Value) -> str:
    """Of int8 codes; nothing has that of other tensors."""
    const = initializer.const_value
    if const is None or const.dtype != ir.DataType.INT8 or len(const.shape) < 2:
        return ""
    codes: np.ndarray = const.numpy()
    return nodes.digest(codes.reshape(len(codes), -1))


def name_rounded(graph: ir.Graph) -> None:
    """Call the codes of rounded values by their order, in which the network rounds them: see ``ROUNDED``."""
    codes = [node.outputs[0] for node in graph if node.op_type == "QuantizeLinear"]
    for number, value in enumerate(value for value in codes if value.dtype == ir.DataType.UINT8):
        value.name = f"{ROUNDED}{number}"
