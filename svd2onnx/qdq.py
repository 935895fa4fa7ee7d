"""Replace dequantized initializers by their integer codes and the nodes that dequantize them.

    MatMul(x, W)         =>  MatMul(x, DequantizeLinear(codes, Mul(Cast(scale), unit)))      codes [K, N]
    Gather(table, ids)   =>  Mul(Cast(Gather(codes, ids)), Mul(Cast(Gather(scale, ids)), unit))
    Relu(MatMul)         =>  Max(MatMul, 0)                        and Clip likewise: only so does it fuse

Weights are found by content, because the exporter renames, merges and transposes. Every MatMul gets
initializers of its own: onnxruntime fuses the pair only when nothing else uses them. Scales are
stored as int8 (see ``scales``) and made floats by Cast and Mul, which onnxruntime folds when it loads the
file. Standard ONNX has
no Gather of int4 or int2, so a table's codes are packed in bytes and unpacked by exact float
arithmetic on the gathered rows alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from svd2onnx import nodes
from svd2onnx.errors import ExportError
from svd2onnx.schema import CompressedLayer, QuantizedTensor

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


@dataclass(frozen=True)
class FusedMatMul:
    """A MatMul [.., k] x [k, n] on codes, which onnxruntime is expected to run as one MatMulNBits kernel.

    ``factor`` is "dense", "right" (the first of a low-rank pair) or "left" (the second).
    """

    node: str
    layer: str
    factor: str
    bits: int
    block_size: int
    k: int
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Planned:
    """A quantized tensor that must be in the graph, as [columns, rows] for a MatMul or as a table."""

    layer: str
    factor: str
    tensor: QuantizedTensor


def insert_dequantize(
    graph: ir.Graph, layers: Mapping[str, CompressedLayer], dead: Collection[str] = ()
) -> list[FusedMatMul]:
    """Rewrite ``graph`` in place so that each tensor of ``layers`` (by site name) is stored as codes.

    Layers that are ``dead`` may be missing in the graph.

    Raises:
        ExportError: a tensor is not in the graph, or is used by a node that is neither MatMul nor Gather.
    """
    wanted = _index(layers)
    missing = {(entry.layer, entry.factor) for entries in wanted.values() for entry in entries}
    matmuls: list[FusedMatMul] = []
    for initializer in list(graph.initializers.values()):
        array = _float_matrix(initializer)
        planned = wanted.get(_digest(array)) if array is not None else None
        if planned is None:
            continue
        missing -= {(entry.layer, entry.factor) for entry in planned}
        for node, position in tuple(initializer.uses()):
            # Layers of equal content take turns, so that each is named once.
            entry = planned.pop(0) if len(planned) > 1 else planned[0]
            if node.op_type == "MatMul" and position == 1 and not _is_table(entry):
                matmuls.append(_dequantize_matmul(graph, node, entry, len(matmuls)))
            elif node.op_type == "Gather" and position == 0 and _is_table(entry):
                _dequantize_gather(graph, node, entry)
            else:
                raise ExportError(
                    f"the compressed weight of layer {entry.layer!r} is used by the {node.op_type} "
                    f"node {node.name!r}, and only MatMul and Gather take codes; "
                    f"leave the layer in float with --exclude {entry.layer!r}"
                )
        graph.initializers.pop(str(initializer.name))
    lost = {name for name, _ in missing} - set(dead)
    if lost:
        names = ", ".join(sorted(lost))
        raise ExportError(
            f"the exported graph does not hold the compressed weights of: {names}; "
            "leave these layers in float with --exclude"
        )
    return matmuls


def _index(layers: Mapping[str, CompressedLayer]) -> dict[str, list[_Planned]]:
    wanted: dict[str, list[_Planned]] = {}
    for name, layer in layers.items():
        for factor in ("dense", "right", "left"):
            tensor: QuantizedTensor | None = getattr(layer, factor)
            if tensor is None:
                continue
            weight = tensor.dequantize().numpy()
            key = _digest(weight if layer.is_table else weight.T)
            wanted.setdefault(key, []).append(_Planned(name, "table" if layer.is_table else factor, tensor))
    return wanted


def _is_table(entry: _Planned) -> bool:
    return entry.factor == "table"


def _float_matrix(value: ir.Value) -> np.ndarray | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return None
    return tensor.numpy()


def _digest(array: np.ndarray) -> str:
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _dequantize_matmul(graph: ir.Graph, node: ir.Node, entry: _Planned, serial: int) -> FusedMatMul:
    tensor, spec = entry.tensor, entry.tensor.spec
    name = f"{entry.layer}.{entry.factor}"
    if f"{name}.codes" in graph.initializers:
        name = f"{name}.{serial}"
    dtype, ir_type = _INTEGERS[spec.bits]
    codes = nodes.initializer(graph, f"{name}.codes", tensor.codes.numpy().T.astype(dtype), ir_type)
    stored = nodes.initializer(graph, f"{name}.scale", tensor.scale.numpy().T, _scale_type(tensor))
    unit = None if tensor.unit is None else _unit(graph, f"{name}.unit", tensor.unit.T)
    # By the node, because the layer's name is long and would be written eight times.
    scale = _steps(graph, node, stored, unit, f"{node.name}.scale")
    attributes = {"axis": 0, "block_size": spec.block_size}
    weight = nodes.insert(graph, node, "DequantizeLinear", [codes, scale], f"{node.name}.weight", attributes)
    node.replace_input_with(1, weight)
    _spell_out_clipping(graph, node)
    k, n = tensor.codes.shape[1], tensor.codes.shape[0]
    assert node.name is not None
    return FusedMatMul(node.name, entry.layer, entry.factor, spec.bits, spec.block_size, k, n)


def _dequantize_gather(graph: ir.Graph, node: ir.Node, entry: _Planned) -> None:
    tensor, spec = entry.tensor, entry.tensor.spec
    name, width = entry.layer, entry.tensor.codes.shape[1]
    output, ids = node.outputs[0], node.inputs[1]
    if output.shape is None or ids is None:
        raise ExportError(f"the rank of the embedding {name!r} is unknown in the exported graph")
    # Tables are shared: further Gather nodes of the same layer use the same initializers.
    codes_name = f"{name}.codes"
    codes = graph.initializers.get(codes_name) or nodes.initializer(
        graph, codes_name, *_pack(tensor.codes.numpy(), spec.bits)
    )
    scale_name = f"{name}.scale"
    scale = graph.initializers.get(scale_name) or nodes.initializer(
        graph, scale_name, tensor.scale.numpy(), _scale_type(tensor)
    )
    prefix = str(node.name)
    rows = nodes.insert(graph, node, "Gather", [codes, ids], f"{prefix}.rows", {"axis": 0})
    values = nodes.cast_float(graph, node, rows, f"{prefix}.values")
    if spec.bits < 8:
        values = _unpack(graph, node, values, spec.bits, prefix)
    row_scale = nodes.insert(graph, node, "Gather", [scale, ids], f"{prefix}.row_scale", {"axis": 0})
    unit = None if tensor.unit is None else _unit(graph, f"{name}.unit", tensor.unit)
    if unit is not None and tensor.unit is not None and len(tensor.unit) > 1:
        unit = nodes.insert(graph, node, "Gather", [unit, ids], f"{prefix}.row_unit", {"axis": 0})
    row_scale = _steps(graph, node, row_scale, unit, f"{prefix}.row_scale")
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


def _spell_out_clipping(graph: ir.Graph, node: ir.Node) -> None:
    """Relu(x) = Max(x, 0) and Clip(x, a, b) = Min(Max(x, a), b) behind the MatMul ``node``.

    onnxruntime 1.31 fuses no DequantizeLinear into a MatMul that a Relu or Clip reads, nor into one of
    rank 2 with its bias between them, because that becomes a Gemm first.
    """
    product = node.outputs[0]
    values = [product]
    if product.shape is None or len(product.shape) == 2:
        values += [user.outputs[0] for user, _ in product.uses() if user.op_type == "Add"]
    for user in [user for value in values for user, _ in value.uses()]:
        if user.op_type == "Relu":
            bounds = {"Max": nodes.scalar(graph, f"{user.name}.zero", 0.0)}
        elif user.op_type == "Clip":
            bounds = {op: b for op, b in zip(("Max", "Min"), user.inputs[1:], strict=False) if b is not None}
        else:
            continue
        result = user.inputs[0]
        assert result is not None
        for op, bound in bounds.items():
            result = nodes.insert(graph, user, op, [result, bound], f"{user.name}.{op.lower()}", {})
        nodes.replace(graph, user, result)


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


def _steps(graph: ir.Graph, node: ir.Node, scale: ir.Value, unit: ir.Value | None, name: str) -> ir.Value:
    """Stored scales as float32 factors; onnxruntime folds this at load where they are constant."""
    value = nodes.cast_float(graph, node, scale, f"{name}_float")
    if unit is None:
        return value
    factor = nodes.cast_float(graph, node, unit, f"{name}_unit")
    return nodes.insert(graph, node, "Mul", [value, factor], f"{name}_steps", {})


def _unit(graph: ir.Graph, name: str, unit: torch.Tensor) -> ir.Value:
    return graph.initializers.get(name) or nodes.initializer(graph, name, unit.numpy(), _SCALES[unit.dtype])


def _scale_type(tensor: QuantizedTensor) -> ir.DataType:
    return _SCALES[tensor.scale.dtype]
