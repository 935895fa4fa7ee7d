"""Replace dequantized initializers by their integer codes and the nodes that dequantize them.

    MatMul(x, W)         =>  MatMul(x, DequantizeLinear(codes, steps))      codes [K, N]
    Relu(MatMul)         =>  Max(MatMul, 0)                        and Clip likewise: only so does it fuse
    Gather(table, ids)   =>  see ``embedding_nodes``
    Conv(x, W)           =>  see ``convolution_nodes``
    Stored(W)            =>  see ``stored_nodes``

Weights are found by content, because the exporter renames, merges and transposes. Every MatMul gets
initializers of its own: onnxruntime fuses the pair only when nothing else uses them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from svd2onnx.graph import code_nodes, nodes
from svd2onnx.graph.convolution_nodes import fold_convolution
from svd2onnx.graph.embedding_nodes import dequantize_gather
from svd2onnx.graph.quantized_nodes import FusedMatMul, QuantizedNode
from svd2onnx.graph.stored_nodes import StoredNodes
from svd2onnx.network.modules import STORED_OP
from svd2onnx.values.errors import ExportError
from svd2onnx.values.schema import CompressedLayer, QuantizedTensor

_PLACES = {
    "linear": ("MatMul", 1),
    "embedding": ("Gather", 0),
    "convolution": ("Conv", 1),
    "stored": (STORED_OP, 0),
}


@dataclass(frozen=True)
class _Planned:
    """A quantized tensor that must be in the graph, where the operator of its layer's kind takes it."""

    layer: str
    factor: str
    kind: str
    tensor: QuantizedTensor

    @property
    def place(self) -> tuple[str, int]:
        """The operator that may use it, and as which input."""
        return _PLACES[self.kind]


def insert_dequantize(
    graph: ir.Graph, layers: Mapping[str, CompressedLayer], dead: Collection[str] = ()
) -> list[QuantizedNode]:
    """Rewrite ``graph`` in place so that each tensor of ``layers`` (by site name) is stored as codes.

    Layers that are ``dead`` may be missing in the graph.

    Raises:
        ExportError: a tensor is not in the graph, or is used by another operator than its layer's.
    """
    wanted = _index(layers)
    missing = {(entry.layer, entry.factor) for entries in wanted.values() for entry in entries}
    made: list[QuantizedNode] = []
    folded: dict[tuple[str, str], ir.Value] = {}
    stored = StoredNodes(graph)
    for initializer in list(graph.initializers.values()):
        array = _float_matrix(initializer)
        planned = wanted.get(nodes.digest(array)) if array is not None else None
        if planned is None:
            continue
        missing -= {(entry.layer, entry.factor) for entry in planned}
        for node, position in tuple(initializer.uses()):
            entry = _taken(planned, (node.op_type, position))
            if (node.op_type, position) != entry.place:
                raise ExportError(
                    f"the compressed weight of layer {entry.layer!r} is used by the {node.op_type} "
                    f"node {node.name!r}, and only {entry.place[0]} takes its codes; "
                    f"leave the layer in float with --exclude {entry.layer!r}"
                )
            if entry.kind == "linear":
                made.append(_dequantize_matmul(graph, node, entry, len(made)))
            elif entry.kind == "convolution":
                made.append(fold_convolution(graph, node, entry.layer, entry.factor, entry.tensor, folded))
            elif entry.kind == "stored":
                stored.fold(node, entry.layer, entry.tensor)
            else:
                dequantize_gather(graph, node, entry.layer, entry.tensor)
        graph.initializers.pop(str(initializer.name))
    stored.finish()
    lost = {name for name, _ in missing} - set(dead)
    if lost:
        names = ", ".join(sorted(lost))
        raise ExportError(
            f"the exported graph does not hold the compressed weights of: {names}; "
            "leave these layers in float with --exclude"
        )
    return [*made, *stored.folded]


def _taken(planned: list[_Planned], place: tuple[str, int]) -> _Planned:
    """What of ``planned`` is used at ``place``, or any if none is.

    Layers of equal content take turns, so that each is named once.
    """
    entry = next((entry for entry in planned if entry.place == place), planned[0])
    if sum(other.place == entry.place for other in planned) > 1:
        planned.remove(entry)
    return entry


def _index(layers: Mapping[str, CompressedLayer]) -> dict[str, list[_Planned]]:
    wanted: dict[str, list[_Planned]] = {}
    for name, layer in layers.items():
        for factor in ("dense", "right", "left"):
            tensor: QuantizedTensor | None = getattr(layer, factor)
            if tensor is None:
                continue
            weight = tensor.dequantize().numpy()
            key = nodes.digest(weight.T if layer.kind == "linear" else weight)
            wanted.setdefault(key, []).append(_Planned(name, factor, layer.kind, tensor))
    return wanted


def _float_matrix(value: ir.Value) -> np.ndarray | None:
    """A weight as a matrix: that of a convolution flattened, as its codes are."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
        return None
    array: np.ndarray = tensor.numpy()
    return array.reshape(len(array), -1)


def _dequantize_matmul(graph: ir.Graph, node: ir.Node, entry: _Planned, serial: int) -> FusedMatMul:
    tensor, spec = entry.tensor, entry.tensor.spec
    name = f"{entry.layer}.{entry.factor}"
    if f"{name}.codes" in graph.initializers:
        name = f"{name}.{serial}"
    codes = code_nodes.codes(graph, f"{name}.codes", tensor.codes.numpy().T, spec.bits)
    stored = code_nodes.scales(graph, f"{name}.scale", tensor.scale.T)
    unit = None if tensor.unit is None else code_nodes.unit_of(graph, f"{name}.unit", tensor.unit.T)
    # By the node, because the layer's name is long and would be written eight times.
    scale = code_nodes.steps(graph, node, stored, unit, f"{node.name}.scale")
    attributes = {"axis": 0, "block_size": spec.block_size}
    weight = nodes.insert(graph, node, "DequantizeLinear", [codes, scale], f"{node.name}.weight", attributes)
    node.replace_input_with(1, weight)
    _spell_out_clipping(graph, node)
    k, n = tensor.codes.shape[1], tensor.codes.shape[0]
    assert node.name is not None
    return FusedMatMul(node.name, entry.layer, entry.factor, spec.bits, spec.block_size, k, n)


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
