"""Check, time and judge ONNX graphs with numpy and onnxruntime alone: no torch, no onnx.

``open_session`` and ``run`` execute a graph, ``certify`` proves that its quantized MatMuls fused,
``bench`` times graphs side by side, ``evaluate`` compares one with its float32 original, ``generate``
continues text with a graph that takes and gives keys and values.
"""

from svd2onnx_runtime.bench import (
    BatchTiming,
    BenchedGraph,
    BenchResult,
    GraphTiming,
    bench,
    bench_by_batch,
)
from svd2onnx_runtime.certify import Certificate, certify
from svd2onnx_runtime.errors import GraphError, InputsError, InstallationError, ProviderError, Svd2OnnxError
from svd2onnx_runtime.evaluate import EvaluationResult, evaluate
from svd2onnx_runtime.external import graph_bytes
from svd2onnx_runtime.generate import Generation, generate
from svd2onnx_runtime.machine import gpu_count
from svd2onnx_runtime.memory import Footprint, measure_footprint
from svd2onnx_runtime.objectives import fidelity, sample_errors, token_mask
from svd2onnx_runtime.outputs import OutputErrors, OutputFidelity
from svd2onnx_runtime.roofline import Roofline, measure_roofline
from svd2onnx_runtime.session import open_session, provider_of, run, synthetic_inputs
from svd2onnx_runtime.timing import TimedRuns, time_runs
from svd2onnx_runtime.work import Work, count_work

__all__ = [
    "BatchTiming",
    "BenchResult",
    "BenchedGraph",
    "Certificate",
    "EvaluationResult",
    "Footprint",
    "Generation",
    "GraphError",
    "GraphTiming",
    "InputsError",
    "InstallationError",
    "OutputErrors",
    "OutputFidelity",
    "ProviderError",
    "Roofline",
    "Svd2OnnxError",
    "TimedRuns",
    "Work",
    "bench",
    "bench_by_batch",
    "certify",
    "count_work",
    "evaluate",
    "fidelity",
    "generate",
    "gpu_count",
    "graph_bytes",
    "measure_footprint",
    "measure_roofline",
    "open_session",
    "provider_of",
    "run",
    "sample_errors",
    "synthetic_inputs",
    "time_runs",
    "token_mask",
]
