"""Let a graph compute in float16; its inputs and outputs stay as they are.

    MatMul(x, W)              =>   MatMul(Cast16(x), W16)                  and so every node but these:
    Sqrt(ReduceMean(x^2))     =>   Sqrt(ReduceMean(Cast32(x)^2))           powers, sums, roots, angles

A node stays in float32 where float16 is too narrow for its operator, where a constant of its own is no
float16 number (an epsilon of 1e-12), and where it reads what such a node made; the next MatMul takes float16
again. What makes the angles of Sin and Cos stays too: positions beyond 2048 are no float16 numbers.
LayerNormalization and Softmax add up in float32 by themselves. What follows from constants alone is computed
in float32 and then cast: onnxruntime folds it with CPU kernels, which know no float16.

Constants beyond 1e30 stand for infinity, in masks. They become 2^14, of which several add up to a float16.

Why not onnxruntime's converter (1.31, ``transformers.float16``): it casts what a float32 node makes to
float16 at once, so the square in a mean of squares overflows before the root is taken.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from svd2onnx.graph import nodes
from svd2onnx.graph.constant_folding import constants
from svd2onnx.values.errors import ExportError

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_WIDE = frozenset(
    """Acos Acosh Asin Asinh Atan Atanh Cos Cosh CumProd CumSum Exp Log LpNormalization Pow Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare Resize
    Sin Sinh Softplus Sqrt Tan""".split()
)
"""As torch.autocast has them; Resize because its scales are always float32."""
_NARROW = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose"))
_ANGLES = frozenset(("Cos", "Sin"))
_LARGEST = 65504.0
_INFINITE, _STAND_IN = 1e30, 2.0**14
_ROUNDING = 2.0**-10
"""Of a normal number, at most."""


def to_half(model: ir.Model) -> None:
    """Rewrite ``model``, a graph of standard operators, in place.

    Raises:
        ExportError: the graph has control flow or a value of unknown type, or steps beyond float16.
    """
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise ExportError(
                f"the {node.op_type} node {node.name!r} holds graphs of its own, and --dtype float16 takes "
                "graphs without control flow: leave it out"
            )
    ShapeInferencePass()(model)
    _bound_constants(model.graph)
    _Narrowing(model.graph).run()


class _Narrowing:
    """One graph, with what is known of its nodes and what was cast already."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._constant = constants(graph)
        self._angles = _makers_of_angles(graph)
        self._done: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for node in list(self._graph):
            if node.outputs[0] not in self._constant and any(map(_is_float, (*node.inputs, *node.outputs))):
                self._convert(node)
        for i, output in enumerate(self._graph.outputs):
            if output.dtype == _HALF:
                self._restore(i, output)

    def _convert(self, node: ir.Node) -> None:
        dtype = _FLOAT if self._stays_wide(node) else _HALF
        for i, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and value.dtype != dtype:
                node.replace_input_with(i, self._as(value, dtype, node))
        if dtype == _HALF:
            for output in node.outputs:
                if output.dtype == _FLOAT:
                    output.type = ir.TensorType(_HALF)
            _say_half(node)

    def _stays_wide(self, node: ir.Node) -> bool:
        if node.op_type in _WIDE or node in self._angles:
            return True
        if node.op_type in _NARROW:
            return False
        return any(
            _is_no_half(value) if value in self._constant else value.producer() and value.dtype == _FLOAT
            for value in node.inputs
            if value is not None
        )

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        """``value`` as ``dtype``, made once: ``reader`` is the first to ask, and comes first."""
        key = value, dtype
        if key not in self._done:
            name = f"{value.name}.{'half' if dtype == _HALF else 'wide'}"
            if value in self._constant and dtype == _HALF:
                _check_range(value, reader)
            if value.const_value is not None and dtype == _HALF:
                array = value.const_value.numpy().astype(np.float16)
                self._done[key] = nodes.initializer(self._graph, name, array, _HALF)
            else:
                self._done[key] = nodes.cast(self._graph, reader, value, dtype, name)
        return self._done[key]

    def _restore(self, i: int, output: ir.Value) -> None:
        """Make output ``i`` float32 again, under its name."""
        cast = ir.node("Cast", [output], {"to": int(_FLOAT)})
        self._graph.append(cast)
        result, name = cast.outputs[0], output.name
        output.name = f"{name}.half"
        result.name, result.type, result.shape = name, ir.TensorType(_FLOAT), output.shape
        self._graph.outputs[i] = result


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (_FLOAT, _HALF)


def _makers_of_angles(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that the inputs of Sin and Cos come from, back to the next layer with a weight."""
    makers: set[ir.Node] = set()
    todo = [node for node in graph if node.op_type in _ANGLES]
    while todo:
        for value in todo.pop().inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker not in makers and not _has_weight(maker):
                makers.add(maker)
                todo.append(maker)
    return makers


def _has_weight(node: ir.Node) -> bool:
    if node.op_type not in _NARROW:
        return False
    weight = node.inputs[1]
    producer = weight.producer() if weight is not None else None
    return node.op_type != "MatMul" or (producer is not None and producer.op_type == "DequantizeLinear")


def _is_no_half(value: ir.Value) -> bool:
    """Whether ``value`` is one number that float16 would change by more than it rounds others."""
    tensor = value.const_value
    if tensor is None or tensor.size != 1 or value.dtype != _FLOAT:
        return False
    number = float(tensor.numpy().item())
    with np.errstate(over="ignore"):
        error = abs(float(np.float16(number)) - number)
    return bool(np.isfinite(number) and error > _ROUNDING * abs(number))


def _check_range(value: ir.Value, reader: ir.Node) -> None:
    """Refuse numbers that would become infinite, and steps that would vanish."""
    array = _evaluate(value)
    if array is None or not array.size:
        return
    largest = float(np.abs(array).max())
    with np.errstate(over="ignore"):
        change = abs(float(np.float16(largest)) - largest)
    vanishes = reader.op_type == "DequantizeLinear" and change > _ROUNDING * largest
    if np.isfinite(largest) and (largest > _LARGEST or vanishes):
        raise ExportError(
            f"float16 holds magnitudes from 6e-8 to 65504, and {value.name!r} has {largest:.1e}: "
            "leave out --dtype float16"
        )


def _evaluate(value: ir.Value) -> np.ndarray | None:
    """The numbers of an initializer, or of steps that Cast and Mul make of initializers."""
    if value.const_value is not None:
        array: np.ndarray = value.const_value.numpy().astype(np.float32)
        return array
    producer = value.producer()
    if producer is None or producer.op_type not in ("Cast", "Mul"):
        return None
    parts = [_evaluate(part) for part in producer.inputs if part is not None]
    known = [part for part in parts if part is not None]
    return np.prod(np.broadcast_arrays(*known), axis=0) if len(known) == len(parts) else None


def _bound_constants(graph: ir.Graph) -> None:
    """Replace what stands for infinity, also where float32 nodes use it: their results are cast."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == _FLOAT:
            array = tensor.numpy()
            large = np.isfinite(array) & (np.abs(array) > _INFINITE)
            if large.any():
                bounded = np.where(large, np.copysign(_STAND_IN, array), array).astype(np.float32)
                value.const_value = ir.Tensor(bounded, name=value.name)


def _say_half(node: ir.Node) -> None:
    """Change the attribute that gives ``node``'s output its type, where it has one."""
    for name in ("to", "dtype", "output_dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_int() == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(_HALF))
    if node.op_type == "ConstantOfShape":
        given = node.attributes.get("value")
        number = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
        if number.dtype == np.float32:
            bounded = np.clip(number, -_STAND_IN, _STAND_IN) if np.isfinite(number).all() else number
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(bounded.astype(np.float16)))
