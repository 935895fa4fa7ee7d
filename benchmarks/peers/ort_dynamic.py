"""onnxruntime's quantize_dynamic: int8 weights with a scale for each output, activations rounded per call."""

from __future__ import annotations

import logging
from pathlib import Path

from benchmarks.graphs import tidy
from benchmarks.task import Task


def compress(task: Task, output: Path, *, shapes: bool = True) -> None:
    """Quantize every MatMul with a constant weight; its other operators stay float, embeddings among them.

    Without ``shapes`` those of its values are left out: onnxruntime then fuses less, and runs faster.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises to preprocess, which changes nothing here
    quantize_dynamic(
        task.graph,
        output,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
    )
    if not shapes:
        tidy(output)
