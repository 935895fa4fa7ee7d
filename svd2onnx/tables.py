"""Results as rich tables, for people; the JSON beside the file says the same to programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from svd2onnx.inspection import LayerInspection
from svd2onnx.report import Choice, CompressionReport
from svd2onnx_runtime import BenchResult, EvaluationResult


def compression_table(report: CompressionReport) -> Table:
    """Bytes, forms, fidelity, latency and certificate of one run."""
    table = Table(title=f"{report.source} ({report.method})", show_header=False)
    table.add_row("float32 ONNX", megabytes(report.float_bytes))
    table.add_row(
        "compressed ONNX",
        f"{megabytes(report.file_bytes)}: {report.kept:.1%} kept, {1 - report.kept:.1%} removed",
    )
    forms = Counter((layer.kind, _plural_form(layer.form)) for layer in report.layers)
    for (kind, form), count in sorted(forms.items()):
        table.add_row("layers", f"{count} x {kind}: {form}")
    table.add_row(
        "strict fidelity",
        f"{report.strict_fidelity:.5f} (ONNX and PyTorch differ by {report.strict_relative_error:.0e})",
    )
    if report.predicted_error is not None:
        table.add_row(
            "error, predicted", f"{report.predicted_error:.5f} (measured: {report.strict_error:.5f})"
        )
    if report.choice is not None:
        table.add_row("against uniform", _against(report.choice))
    deployed = report.deployed
    error = f" +- {deployed.standard_error:.5f}" if deployed.standard_error is not None else ""
    table.add_row(
        "deployed fidelity",
        f"{deployed.fidelity:.5f}{error} ({deployed.objective}, {deployed.samples} samples, "
        f"{deployed.provider})",
    )
    for name, value in deployed.metric.items():
        table.add_row(name, f"{value:.4f} (float32: {deployed.reference_metric[name]:.4f})")
    if report.speed is not None:
        speed = report.speed
        table.add_row(
            "latency as asked",
            f"{speed.measured:.2f} of float32 (planned: {speed.predicted:.2f}, asked: {speed.asked:.2f})",
        )
    for latency in report.latency:
        table.add_row(
            f"latency, batch {latency.batch}",
            f"{latency.median_ms:.2f} ms, {latency.ratio:.2f} of float32 ({latency.reference_ms:.2f} ms)",
        )
    certificate = report.certificate
    done, how = (certificate.folded, "folded") if certificate.folded else (certificate.fused, "fused")
    fused = f"{len(done)} of {certificate.planned} {how} on {certificate.provider}"
    table.add_row("quantized MatMuls", fused)
    for name, reason in certificate.unfused[:5]:
        table.add_row("not fused", f"{name}: {reason}")
    for name, reason in certificate.misplaced[:5]:
        table.add_row("misplaced", f"{name}: {reason}")
    return table


def _against(choice: Choice) -> str:
    """The plan and the uniform quantization that it is measured against, on held-out data."""
    shipped = "uniform" if choice.uniform_wins else "planned"
    size = "no more bytes" if choice.uniform_fits else "more bytes"
    return (
        f"{choice.planned_error:.5f} planned, {choice.uniform_error:.5f} {choice.uniform_form} of {size} "
        f"(held-out data): {shipped} is shipped"
    )


def inspection_table(rows: Sequence[LayerInspection]) -> Table:
    """One line for each layer."""
    table = Table("layer", "kind", "shape", "float32", "as asked", "rank of 90% / 99%", "why float")
    for row in rows:
        ranks = " / ".join(str(rank) for rank in row.energy_ranks) if row.energy_ranks else ""
        table.add_row(
            row.name,
            row.kind,
            "x".join(map(str, row.shape)),
            megabytes(row.float_bytes),
            megabytes(row.stored_bytes) if row.stored_bytes is not None else "",
            ranks,
            row.note or "",
        )
    table.add_section()
    stored = sum(r.float_bytes if r.stored_bytes is None else r.stored_bytes for r in rows)
    table.add_row("all", "", "", megabytes(sum(r.float_bytes for r in rows)), megabytes(stored))
    return table


def bench_table(results: Sequence[BenchResult]) -> Table:
    """One line for each graph and batch."""
    first = results[0]
    threads = first.threads or "default"
    table = Table(
        *("batch", "graph", "median ms", "p10", "p90", "p99", "samples/s", "ratio"),
        *("load s", "memory MB", "file"),
        title=f"{first.provider}, {threads} threads, onnxruntime {first.onnxruntime}",
    )
    for result in results:
        for graph in result.graphs:
            resident = "" if graph.resident_mb is None else f"{graph.resident_mb:.0f}"
            times = (graph.median_ms, graph.p10_ms, graph.p90_ms, graph.p99_ms)
            table.add_row(
                str(result.batch),
                graph.name,
                *(f"{time:.2f}" for time in times),
                f"{graph.samples_per_s:.1f}",
                f"{graph.latency_ratio:.2f}",
                f"{graph.load_s:.2f}",
                resident,
                megabytes(graph.file_bytes),
            )
    return table


def evaluation_table(result: EvaluationResult) -> Table:
    """Fidelity and the task's metric of both graphs."""
    table = Table("measure", "graph", "reference", title=f"{result.samples} samples, {result.provider}")
    error = f" +- {result.standard_error:.5f}" if result.standard_error is not None else ""
    table.add_row(f"fidelity ({result.objective})", f"{result.fidelity:.5f}{error}", "1")
    table.add_row("worst sample's error", f"{result.worst_error:.5f}", "0")
    for name, value in result.metric.items():
        table.add_row(name, f"{value:.4f}", f"{result.reference_metric[name]:.4f}")
    return table


def megabytes(count: int) -> str:
    """Bytes in units of 10^6, as file managers show them."""
    return f"{count / 1e6:.2f} MB"


def _plural_form(form: str) -> str:
    """Pairs of all ranks count together."""
    return re.sub(r"^rank [1-9]\d* ", "low-rank pair ", form)
