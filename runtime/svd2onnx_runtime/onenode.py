"""ONNX graphs of one operator, written byte by byte: there is no onnx package here.

A protobuf message is a row of fields: a key, which is the field's number and its kind, and a value. Two
kinds are enough: whole numbers (0) and strings of bytes with their length before them (2), which
text and inner messages are. The numbers of the fields are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping

from svd2onnx_runtime.session import Array

ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}
_OPSET, _IR_VERSION = 21, 10


def one_node_graph(op: str, inputs: Mapping[str, Array], result: str) -> bytes:
    """An ONNX file that computes y = ``op``(inputs); all shapes are fixed, ``result`` is y's type."""
    node = b"".join(_field(1, name) for name in inputs) + _field(2, "y") + _field(4, op)
    graph = _field(1, node) + _field(2, op)
    for name, array in inputs.items():
        graph += _field(11, _value(name, array.dtype.name, array.shape))
    graph += _field(12, _value("y", result, None))
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(1, "") + _field(2, _OPSET))


def _value(name: str, kind: str, shape: tuple[int, ...] | None) -> bytes:
    """A ValueInfoProto of this element type; its shape is left open for None."""
    tensor = _field(1, ELEMENT_TYPES[kind])
    if shape is not None:
        tensor += _field(2, b"".join(_field(1, _field(1, size)) for size in shape))
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first; the highest bit of a byte says that more follow."""
    digits = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([digit | 128 for digit in digits[:-1]] + digits[-1:])
