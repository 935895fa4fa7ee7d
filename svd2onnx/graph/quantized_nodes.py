"""The nodes of an exported graph that compute with stored codes, as its metadata lists them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class QuantizedNode:
    """A node on a weight of ``bits`` wide codes, with a step for each block; k inputs, n outputs.

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
        """All fields, in their order."""
        return asdict(self)


@dataclass(frozen=True)
class FusedMatMul(QuantizedNode):
    """A MatMul [.., k] x [k, n] on codes, which onnxruntime is expected to run as one MatMulNBits kernel."""


@dataclass(frozen=True)
class FoldedWeight(QuantizedNode):
    """Codes [n, k] whose float weight nodes named ``weight``/... make at load, for an operator ``op``."""

    weight: str
    operator: str = "folded"
    op: str = "Conv"


@dataclass(frozen=True)
class FoldedInt8Weight(FoldedWeight):
    """The same for a convolution on rounded inputs, which onnxruntime is expected to run as a QLinearConv."""

    activations: str = "int8"
