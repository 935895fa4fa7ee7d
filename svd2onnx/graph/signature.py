"""What a graph takes and gives: names, element types and shapes, read without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from svd2onnx.values.errors import one_line
from svd2onnx_runtime import GraphError
from svd2onnx_runtime.dimensions import is_batch

VERSION_KEY = "svd2onnx.version"
"""The metadata entry of every graph that ``export`` writes."""
_NUMPY = {"FLOAT": "float32", "DOUBLE": "float64"}


@dataclass(frozen=True)
class Tensor:
    """One input or output; ``dtype`` is numpy's name, a dynamic dimension a name, or None if it has none."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one graph, its opset, and the version of svd2onnx that made it, if it did."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    opset: int
    made_by: str | None

    @property
    def is_batched(self) -> bool:
        """Whether the dynamic dimension "batch" or "batch_size" is the first of every input and output."""
        return all(is_batch(next(iter(tensor.shape), None)) for tensor in (*self.inputs, *self.outputs))

    def __str__(self) -> str:
        return " -> ".join(", ".join(map(str, tensors)) for tensors in (self.inputs, self.outputs))


def read_signature(graph: Path) -> Signature:
    """The signature of the ONNX file ``graph``.

    Raises:
        GraphError: there is no such file, it is no ONNX graph, or takes or gives something else than tensors.
    """
    try:
        model = ir.load(graph)
    except OSError as error:
        raise GraphError(f"cannot read {graph}: {error.strerror or error}") from error
    except Exception as error:  # of the protobuf parser and of onnx-ir, which have many
        raise GraphError(f"{graph} is no ONNX file: {one_line(error)}") from error
    if not model.graph.outputs:
        raise GraphError(f"{graph} is no ONNX file: it gives nothing")
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return Signature(
        inputs=tuple(_tensor(value, graph) for value in inputs),
        outputs=tuple(_tensor(value, graph) for value in model.graph.outputs),
        opset=model.opset_imports.get("", 0),
        made_by=model.metadata_props.get(VERSION_KEY),
    )


def _tensor(value: ir.Value, graph: Path) -> Tensor:
    if not isinstance(value.type, ir.TensorType) or value.shape is None or value.name is None:
        raise GraphError(f"{graph} says no element type and shape of {value.name!r}: export it again")
    name = value.type.dtype.name
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return Tensor(value.name, _NUMPY.get(name, name.lower()), shape)
