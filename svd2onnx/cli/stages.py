"""The stages of a command in their order, which number its progress ("[3/8]"), as far as settings tell.

What an earlier run left in the cache is not done again: its stages are then passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svd2onnx.values.settings import Settings

INSPECTION = ("Reading calibration data", "Looking at inputs", "Calibrating", "Probing", "Decomposing")


def compression_stages(settings: Settings) -> list[str]:
    """Of compress-export."""
    planned = settings.method == "auto" and settings.plan is None
    calibrated = settings.calibration_samples > 0
    named = {
        "Reading calibration data": True,
        "Exporting float32": True,
        "Looking at inputs": calibrated,
        "Calibrating": calibrated,
        "Probing": calibrated and planned,
        "Timing layers": settings.target_latency is not None,
        "Dropping layers": calibrated and planned,
        "Pricing candidates": planned,
        "Choosing ranks": settings.method == "svd",
        "Quantizing": True,
        "Exporting": True,
        "Measuring": planned or calibrated,
        "Retraining": settings.recover > 0,
        "Verifying": True,
        "Evaluating": True,
        "Benchmarking": True,
    }
    return [name for name, is_done in named.items() if is_done]
