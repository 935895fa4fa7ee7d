"""Compress trained PyTorch networks by low rank and quantization, and export them as ONNX.

``compress_export`` is the whole story; its steps (``calibrate``, ``rewrite``, ``export``, ...) are public
functions of the modules named after them. They are imported on first use, because torch is slow to load.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Settings": "settings",
    "WithPast": "decoder",
    "calibrate": "calibrate",
    "candidates": "candidates",
    "compress_export": "pipeline",
    "discover": "layers",
    "export": "export",
    "load_model_file": "loading",
    "prepare": "preparation",
    "realize": "realize",
    "recover": "recover",
    "rewrite": "rewrite",
    "uniform_plan": "planner",
    "article_plan": "planner",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'svd2onnx' has no attribute {name!r}")
    return getattr(import_module(f"svd2onnx.{_HOMES[name]}"), name)
