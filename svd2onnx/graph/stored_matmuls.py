"""The quantized MatMuls of an exported graph, as the passes over it find and name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from svd2onnx_runtime.certify import METADATA_KEY


@dataclass(frozen=True)
class StoredMatMul:
    """MatMul(x, DequantizeLinear(codes, steps)) with codes [k, n] and steps [blocks, n].

    ``codes`` is an initializer, ``steps`` is made of initializers. ``weight`` is (layer, factor): where two
    nodes have the same, their codes are the same.
    """

    node: ir.Node
    codes: ir.Value
    steps: ir.Value
    weight: tuple[str, str]
    bits: int
    block_size: int
    k: int
    n: int


def stored_matmuls(model: ir.Model) -> list[StoredMatMul]:
    """Those that the metadata names, in the order of the graph."""
    # Convolutions have their operator from the start, MatMuls get theirs from a pass.
    entries = {entry["node"]: entry for entry in planned(model) if "operator" not in entry}
    return [_stored(node, entries[node.name]) for node in model.graph if node.name in entries]


def planned(model: ir.Model) -> list[dict[str, Any]]:
    """The metadata's entries."""
    entries: list[dict[str, Any]] = json.loads(model.metadata_props[METADATA_KEY])
    return entries


def plan_again(model: ir.Model, entries: Sequence[dict[str, Any]]) -> None:
    """Write ``entries`` to the metadata."""
    model.metadata_props[METADATA_KEY] = json.dumps(entries, separators=(",", ":"))


def _stored(node: ir.Node, entry: dict[str, Any]) -> StoredMatMul:
    weight = node.inputs[1]
    assert weight is not None
    dequantize = weight.producer()
    assert dequantize is not None
    codes, steps = dequantize.inputs
    assert codes is not None
    assert steps is not None
    return StoredMatMul(
        node,
        codes,
        steps,
        weight=(entry["layer"], entry["factor"]),
        **{key: entry[key] for key in ("bits", "block_size", "k", "n")},
    )
