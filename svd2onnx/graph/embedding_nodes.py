"""Embeddings that look up codes: only the rows asked for become floats.

    Gather(table, ids)   =>  Mul(Cast(Gather(codes, ids)), Mul(Cast(Gather(scale, ids)), unit))

Standard ONNX has no Gather of int4 or int2, so these codes are packed in bytes and unpacked by exact float
arithmetic on the gathered rows alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from svd2onnx.graph import code_nodes, nodes
from svd2onnx.values.errors import ExportError
from svd2onnx.values.schema import QuantizedTensor


def dequantize_gather(graph: ir.Graph, node: ir.Node, name: str, tensor: QuantizedTensor) -> None:
    """Let the Gather ``node`` read the codes of the table ``tensor`` of layer ``name``.

    Raises:
        ExportError: the rank of its output is unknown.
    """
    spec, width = tensor.spec, tensor.codes.shape[1]
    output, ids = node.outputs[0], node.inputs[1]
    if output.shape is None or ids is None:
        raise ExportError(f"the rank of the embedding {name!r} is unknown in the exported graph")
    # Tables are shared: further Gather nodes of the same layer use the same initializers.
    codes_name = f"{name}.codes"
    codes = graph.initializers.get(codes_name) or nodes.initializer(
        graph, codes_name, *_pack(tensor.codes.numpy(), spec.bits)
    )
    scale_name = f"{name}.scale"
    scale = graph.initializers.get(scale_name) or code_nodes.scales(graph, scale_name, tensor.scale)
    prefix = str(node.name)
    rows = nodes.insert(graph, node, "Gather", [codes, ids], f"{prefix}.rows", {"axis": 0})
    values = nodes.cast_float(graph, node, rows, f"{prefix}.values")
    if spec.bits < 8:
        values = _unpack(graph, node, values, spec.bits, prefix)
    row_scale = nodes.insert(graph, node, "Gather", [scale, ids], f"{prefix}.row_scale", {"axis": 0})
    unit = None if tensor.unit is None else code_nodes.unit_of(graph, f"{name}.unit", tensor.unit)
    if unit is not None and tensor.unit is not None and len(tensor.unit) > 1:
        unit = nodes.insert(graph, node, "Gather", [unit, ids], f"{prefix}.row_unit", {"axis": 0})
    row_scale = code_nodes.steps(graph, node, row_scale, unit, f"{prefix}.row_scale")
    leading, blocks = len(output.shape) - 1, tensor.scale.shape[1]
    # In a Reshape, 0 keeps a dimension as it is.
    split = nodes.shape(graph, f"{prefix}.split", [0] * leading + [blocks, width // blocks])
    single = nodes.shape(graph, f"{prefix}.single", [0] * leading + [blocks, 1])
    joined = nodes.shape(graph, f"{prefix}.joined", [0] * leading + [width])
    values = nodes.insert(graph, node, "Reshape", [values, split], f"{prefix}.blocks", {})
    row_scale = nodes.insert(graph, node, "Reshape", [row_scale, single], f"{prefix}.block_scale", {})
    scaled = nodes.insert(graph, node, "Mul", [values, row_scale], f"{prefix}.scaled", {})
    result = nodes.insert(graph, node, "Reshape", [scaled, joined], f"{prefix}.embedding", {})
    nodes.replace(graph, node, result)


def _pack(codes: np.ndarray, bits: int) -> tuple[np.ndarray, ir.DataType]:
    """Codes [rows, width] -> int8, or bytes [rows, width / n] of n codes from n parts of the row."""
    if bits == 8:
        return codes, ir.DataType.INT8
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    parts = np.split(unsigned, 8 // bits, axis=1)
    packed = sum(part << np.uint8(bits * i) for i, part in enumerate(parts))
    return np.asarray(packed, dtype=np.uint8), ir.DataType.UINT8


def _unpack(graph: ir.Graph, node: ir.Node, packed: ir.Value, bits: int, prefix: str) -> ir.Value:
    """Bytes as floats [..., width / n] -> codes as floats [..., width]; every step is exact."""
    base = nodes.scalar(graph, f"{prefix}.base", float(1 << bits))
    fraction = nodes.scalar(graph, f"{prefix}.fraction", 1.0 / (1 << bits))
    offset = nodes.scalar(graph, f"{prefix}.offset", float(1 << (bits - 1)))
    parts, rest = [], packed
    for i in range(8 // bits - 1):
        shifted = nodes.insert(graph, node, "Mul", [rest, fraction], f"{prefix}.shifted{i}", {})
        quotient = nodes.insert(graph, node, "Floor", [shifted], f"{prefix}.quotient{i}", {})
        whole = nodes.insert(graph, node, "Mul", [quotient, base], f"{prefix}.whole{i}", {})
        parts.append(nodes.insert(graph, node, "Sub", [rest, whole], f"{prefix}.part{i}", {}))
        rest = quotient
    joined = nodes.insert(graph, node, "Concat", [*parts, rest], f"{prefix}.unsigned", {"axis": -1})
    return nodes.insert(graph, node, "Sub", [joined, offset], f"{prefix}.codes_float", {})
