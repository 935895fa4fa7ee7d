"""The networks that all tests of the graph share, and what they are made of."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from torch import nn

from svd2onnx.graph.quantized_nodes import FusedMatMul
from tests.svd2onnx.networks import Compressed, Tokens, Vectors

Case = tuple[type[nn.Module], int, int | None]
"""A network, the width of its codes, and the rank of its pairs."""
CASES = [
    pytest.param((kind, bits, rank), id=f"{kind.__name__.lower()}-int{bits}-{'pair' if rank else 'dense'}")
    for kind in (Vectors, Tokens)
    for bits in (8, 4, 2)
    for rank in (None, 16)
]


@dataclass(frozen=True)
class Exported:
    """A compressed network and its file."""

    compressed: Compressed
    path: Path
    planned: list[FusedMatMul]
    bits: int
    rank: int | None

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load(self.path)
