"""A report as a run could have made it, without the run."""

from dataclasses import replace
from typing import Any

from svd2onnx.reporting.report import (
    Choice,
    CompressionReport,
    LatencyReport,
    LayerReport,
    Retraining,
    SizePoint,
)
from svd2onnx_runtime import Certificate, EvaluationResult

LAYERS = (
    LayerReport("embedding.table", "embedding", (30522, 384), "int4/32", 46_881_792, 6_232_000, None, 2e-3),
    LayerReport("encoder.0.query", "linear", (384, 384), "rank 96 int4/32", 589_824, 41_000, None, 1e-3, 96),
    LayerReport("encoder.0.output", "linear", (384, 1536), "int2/64 + rank 32 int4/32", 2_359_296, 196_000,
                None, 4e-3, 32),
    LayerReport("encoder.0.key", "linear", (384, 384), "rank 0", 589_824, 0, None, 1e-5, 0),
    LayerReport("encoder.0.norm", "LayerNorm", (384,), "float", 1536, 1536,
                "LayerNorm layers are kept in float"),
)  # fmt: skip
CURVE = (
    *(SizePoint(int(4e6 * 1.2**i), 0.8 * 0.45**i) for i in range(16)),
    SizePoint(90_000_000, 0.0),
    *(SizePoint(size, error, form) for form, size, error in [
        ("int8/128", 23_000_000, 5e-4), ("int4/32", 12_300_000, 8e-3), ("int4/128", 11_600_000, 1.6e-2),
        ("int2/32", 7_000_000, 0.6),
    ]),
)  # fmt: skip


def a_report(**changes: Any) -> CompressionReport:
    """Of a planned network, with ``changes`` to its fields."""
    report = CompressionReport(
        source="models/minilm.py",
        output="minilm.onnx",
        method="auto",
        settings={
            "method": "auto",
            "target_size": "0.13x",
            "calibration_samples": 0,
            "include": [],
            "plan": None,
        },
        float_bytes=90_300_000,
        file_bytes=11_700_000,
        predicted_error=0.009,
        choice=Choice(0.011, 0.013, "int4/128", True, 1.1),
        speed=None,
        strict_relative_error=3e-7,
        strict_fidelity=0.9902,
        strict_error=0.0098,
        deployed=EvaluationResult(
            "cpu", "cosine", 256, 0.9894, 0.0106, 3e-4, 0.05, 17, {"retrieval": 0.81}, {"retrieval": 0.83}
        ),
        latency=(LatencyReport(1, 8.3, 10.0, 0.83), LatencyReport(8, 71.2, 80.0, 0.89)),
        certificate=Certificate("cpu", "1.31.1", 37, tuple(f"m{i}" for i in range(37)), ()),
        layers=LAYERS,
        sha256="0123456789abcdef" * 4,
        seconds=312.0,
        warnings=("no calibration data: inputs were taken as equal",),
        versions={"python": "3.11.2", "torch": "2.13.0"},
        curve=CURVE,
        retraining=Retraining(300, 0.012, 0.011),
        measured_on="held-out samples",
    )
    return replace(report, **changes)
