"""svd2onnx itself, as its command line runs it, with the embeddings left in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.task import Task


def compress(task: Task, output: Path, **setting: Any) -> None:
    """Any fields of ``svd2onnx.values.settings.Settings``."""
    from svd2onnx.pipeline.compress_export import compress_export
    from svd2onnx.values.settings import Settings

    settings = Settings(exclude=task.kept, calibration_samples=task.calibration_samples, **setting)
    compress_export(task.source, output, settings, data=task.data)
