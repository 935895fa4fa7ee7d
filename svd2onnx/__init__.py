"""Compress trained PyTorch networks by low rank and quantization, and export them as ONNX.

``compress`` takes a network in memory, ``compress_export`` one from a file. Their steps (``calibrate``,
``rewrite``, ``export``, ...) are public functions of the modules named after them. They are imported on first
use, because torch is slow to load.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Settings": "values.settings",
    "WithPast": "network.decoder",
    "article_plan": "planning.fixed_rules",
    "calibrate": "calibration.calibrate",
    "candidates": "planning.candidates",
    "compress": "pipeline.compress",
    "compress_export": "pipeline.compress_export",
    "discover": "network.layers",
    "export": "graph.export",
    "load_model_file": "sources.model_file",
    "prepare": "pipeline.preparation",
    "realize": "compression.realize",
    "recover": "retraining.recover",
    "rewrite": "network.rewrite",
    "uniform_plan": "planning.fixed_rules",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'svd2onnx' has no attribute {name!r}")
    return getattr(import_module(f"svd2onnx.{_HOMES[name]}"), name)
