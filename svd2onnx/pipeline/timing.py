"""Time: that of layers before a plan is made for a limit, and that of the finished file for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svd2onnx.latency.latency_model import LatencyModel, measure_latency_model
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.pipeline.workspace import Workspace
from svd2onnx.reporting.report import LatencyReport
from svd2onnx.sources.model_file import Batch, as_arrays
from svd2onnx.sources.rows import exact_rows, row_count
from svd2onnx_runtime import open_session, synthetic_inputs, time_runs
from svd2onnx_runtime.dimensions import BATCH, PAST_LENGTH, SEQUENCE
from svd2onnx_runtime.latency_table import LatencyTable

BATCHES = (1, 8)
_MOST_S = 30.0


def time_layers(prepared: Prepared, workspace: Workspace, table: LatencyTable) -> LatencyModel | None:
    """What every layer takes in every form; None where no latency is asked for."""
    settings = prepared.settings
    if not settings.target_latency:
        return None
    return measure_latency_model(
        prepared.model,
        prepared.sites,
        workspace.float32,
        table,
        sizes=settings.sizes,
        activations=settings.choice_of_activations(prepared.provider),
        track=prepared.track,
    )


@dataclass(frozen=True)
class FileTimer:
    """Times the file at ``path`` against the float32 graph at ``reference``, in turn in one process."""

    path: Path
    reference: Path
    provider: str
    threads: int | None

    def rows(self, inputs: Batch, batch: int) -> LatencyReport:
        """The latency of ``inputs``, which are ``batch`` rows."""
        return self._timed(without_padding(as_arrays(inputs)), batch, past=0)

    def step(self, past: int, batch: int = 1) -> LatencyReport:
        """That of one token of ``batch`` texts after ``past`` others; both graphs take keys and values."""
        sizes = {BATCH: batch, SEQUENCE: 1, PAST_LENGTH: past}
        session = open_session(self.path, self.provider, threads=self.threads)
        return self._timed(synthetic_inputs(session, sizes), batch, past)

    def _timed(self, inputs: Mapping[str, np.ndarray], batch: int, past: int) -> LatencyReport:
        graphs = [self.reference, self.path]
        timed = time_runs(graphs, inputs, self.provider, self.threads, most_s=_MOST_S)
        reference_ms, median_ms = (float(seconds * 1e3) for seconds in np.median(timed.seconds, axis=0))
        return LatencyReport(batch, median_ms, reference_ms, float(timed.ratios[1]), past)


def time_file(prepared: Prepared, workspace: Workspace, inputs: Batch) -> Iterator[LatencyReport]:
    """The latency of the drafted file at several batches of ``inputs``, and of a token after their texts.

    Rows come again where ``inputs`` have too few. Where they have no axis called "batch" (or "batch_size"),
    they are timed as they are.
    """
    timer = FileTimer(workspace.graph, workspace.float32, prepared.provider, prepared.settings.threads)
    axes = prepared.row_axes
    is_fixed = all(axis is None for axis in axes.values())
    batches = (row_count(inputs, axes),) if is_fixed else BATCHES
    for batch in prepared.track(batches, "Benchmarking", len(batches)):
        yield timer.rows(exact_rows(inputs, batch, axes), batch)
    if prepared.settings.with_past:
        yield timer.step(inputs["input_ids"].shape[1])


def without_padding(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``inputs`` cut to the longest row of their ``attention_mask`` [batch, positions], if any."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return dict(inputs)
    used = np.flatnonzero(mask.any(axis=0))
    cut = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(None)
    return {n: array[:, cut] if array.shape == mask.shape else array for n, array in inputs.items()}
