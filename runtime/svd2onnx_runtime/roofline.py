"""The least time that a run can take on this machine, from what onnxruntime itself reaches here.

    limit = max(bytes moved / bandwidth, operations / rate)

The bandwidth is that of Neg over 268 MB, which are read once and written once. The rate is that of a
product of two square matrices, of the element type that is fastest: so the limit of a float32 graph
may be one that only lower precision comes near. Both are the best of a few runs in sessions like
those that are timed: same provider, threads and TF32. A graph so small that it stays in the
processor's cache can beat the bandwidth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svd2onnx_runtime.onenode import one_node_graph
from svd2onnx_runtime.session import Array, resolve_provider
from svd2onnx_runtime.timing import time_runs
from svd2onnx_runtime.work import Work

_COPIED_ELEMENTS = 1 << 26
_WIDTH = {"cpu": 1024, "cuda": 8192}
_PRODUCTS = {
    "cpu": {
        "float32": ("MatMul", "float32", "float32", "float32"),
        "int8": ("MatMulInteger", "uint8", "int8", "int32"),
    },
    "cuda": {
        "float32": ("MatMul", "float32", "float32", "float32"),
        "float16": ("MatMul", "float16", "float16", "float16"),
    },
}
"""Operator, and element types of left, right and result, for what each provider has fast kernels for."""


@dataclass(frozen=True)
class Roofline:
    """What a provider reaches: bytes per second, and operations per second for each element type."""

    bytes_per_s: float
    operations_per_s: Mapping[str, float]

    def limit_s(self, work: Work) -> float:
        """The least seconds that ``work`` takes."""
        rate = max(self.operations_per_s.values())
        return max(work.moved_bytes / self.bytes_per_s, work.operations / rate)


def measure_roofline(provider: str = "auto", threads: int | None = None) -> Roofline:
    """Time a copy and the matrix products on ``provider``; ProviderError where it cannot be had."""
    provider = resolve_provider(provider)
    copied = {"x": np.ones(_COPIED_ELEMENTS, np.float32)}
    width = _WIDTH[provider]
    digits = np.random.default_rng(0).integers(0, 8, (2, width, width))  # a GPU is faster on equal ones
    rates = {}
    for name, (op, left, right, result) in _PRODUCTS[provider].items():
        factors = {"a": digits[0].astype(left), "b": digits[1].astype(right)}
        rates[name] = 2 * width**3 / _fastest_s(op, factors, result, provider, threads)
    return Roofline(
        bytes_per_s=2 * copied["x"].nbytes / _fastest_s("Neg", copied, "float32", provider, threads),
        operations_per_s=rates,
    )


def _fastest_s(
    op: str, inputs: Mapping[str, Array], result: str, provider: str, threads: int | None
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(one_node_graph(op, inputs, result))
        return float(time_runs([path], inputs, provider, threads, repeats=5, warmup=2).seconds.min())
