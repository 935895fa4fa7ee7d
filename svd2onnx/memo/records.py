"""Values of the compressor as JSON and tensors, and their digests.

A dataclass becomes {"is": class name, ...fields}, a tensor {"tensor": number, "order": axes as they lie in
memory}, a list {"list": [...]}, a mapping {"map": [[key, value], ...]}; a JSON array is a tuple.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics, ProbedGammas, ProbedRows
from svd2onnx.compression.lowrank import Factorization
from svd2onnx.planning.candidates import Candidate
from svd2onnx.values.schema import CompressedLayer, LayerForm, QuantizedTensor, QuantSpec

_KINDS = {
    kind.__name__: kind
    for kind in (
        Candidate,
        CompressedLayer,
        Factorization,
        LayerForm,
        LayerStatistics,
        ProbedGammas,
        ProbedRows,
        QuantizedTensor,
        QuantSpec,
    )
}
"""What can be made again of a record; nothing else can, whatever a file says."""


def encode(value: object) -> tuple[str, list[Tensor]]:
    """``value`` as JSON and the tensors that it holds; one that it holds twice is there once.

    Raises:
        TypeError: it holds something that no record can.
    """
    encoder = _Encoder()
    return json.dumps(encoder.of(value)), encoder.tensors


def decode(record: str, tensors: list[Tensor]) -> Any:
    """The value that ``encode`` was given; its tensors have the same numbers in the same layout."""

    def made(part: Any) -> Any:
        if isinstance(part, list):
            return tuple(map(made, part))
        if not isinstance(part, dict):
            return part
        if "tensor" in part:
            order = part["order"]
            return tensors[part["tensor"]].permute([order.index(axis) for axis in range(len(order))])
        if "list" in part:
            return list(map(made, part["list"]))
        if "map" in part:
            return {made(key): made(own) for key, own in part["map"]}
        return _KINDS[part.pop("is")](**{name: made(own) for name, own in part.items()})

    return made(json.loads(record))


def digest(*values: object) -> str:
    """SHA-256, in hexadecimal, of what ``values`` hold."""
    record, tensors = encode(values)
    sha = hashlib.sha256(record.encode())
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(raw(tensor))
    return sha.hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


class _Encoder:
    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._known: dict[tuple[object, ...], int] = {}

    def of(self, value: object) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, tuple):
            return [self.of(part) for part in value]
        if isinstance(value, list):
            return {"list": [self.of(part) for part in value]}
        if isinstance(value, Mapping):
            return {"map": [[self.of(key), self.of(part)] for key, part in value.items()]}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: self.of(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"is": type(value).__name__, **fields}
        raise TypeError(f"no record can hold a {type(value).__name__}")

    def _tensor(self, tensor: Tensor) -> dict[str, object]:
        # Sums over the same numbers in another layout may round otherwise, so the layout is kept.
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
        laid = tensor.detach().permute(order).contiguous()
        key = laid.data_ptr(), laid.dtype, laid.shape
        if key not in self._known or not laid.numel():
            self._known[key] = len(self.tensors)
            self.tensors.append(laid)  # kept, and so its place in memory is its own
        return {"tensor": self._known[key], "order": order}
