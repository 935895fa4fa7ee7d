"""onnxruntime's converter to float16: weights and arithmetic, with inputs and outputs as they were."""

from __future__ import annotations

from pathlib import Path

import onnx

from benchmarks.task import Task


def compress(task: Task, output: Path) -> None:
    """Convert the float32 graph; the operators that its converter knows to need float32 stay so."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(task.graph), keep_io_types=True), output)
