"""The latency of a finished file against the float32 graph, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from svd2onnx.reporting.report import LatencyReport
from svd2onnx_runtime import open_session, synthetic_inputs, time_runs
from svd2onnx_runtime.past import PAST_LENGTH

_MOST_S = 30.0


def measure_latency(
    path: Path,
    reference: Path,
    inputs: Mapping[str, np.ndarray],
    batch: int,
    provider: str,
    threads: int | None,
) -> LatencyReport:
    """Time the file against the float32 graph on the first ``batch`` rows of ``inputs``."""
    rows = without_padding({name: array[:batch] for name, array in inputs.items()})
    return _measured(path, reference, rows, batch, 0, provider, threads)


def measure_step(
    path: Path, reference: Path, past: int, batch: int, provider: str, threads: int | None
) -> LatencyReport:
    """Time one token of ``batch`` texts after ``past`` others; both graphs take keys and values."""
    sizes = {"batch": batch, "sequence": 1, PAST_LENGTH: past}
    inputs = synthetic_inputs(open_session(path, provider, threads=threads), sizes)
    return _measured(path, reference, inputs, batch, past, provider, threads)


def _measured(
    path: Path,
    reference: Path,
    inputs: Mapping[str, np.ndarray],
    batch: int,
    past: int,
    provider: str,
    threads: int | None,
) -> LatencyReport:
    timed = time_runs([reference, path], inputs, provider, threads, most_s=_MOST_S)
    reference_ms, median_ms = (float(seconds * 1e3) for seconds in np.median(timed.seconds, axis=0))
    return LatencyReport(batch, median_ms, reference_ms, float(timed.ratios[1]), past)


def without_padding(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``inputs`` cut to the longest row of their ``attention_mask`` [batch, positions], if any."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return dict(inputs)
    used = np.flatnonzero(mask.any(axis=0))
    cut = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(None)
    return {n: array[:, cut] if array.shape == mask.shape else array for n, array in inputs.items()}
