"""Results as rich tables, for people; the JSON beside the file says the same to programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from svd2onnx.deployment.generation import GeneratedTexts
from svd2onnx.reporting.report import Choice, CompressionReport, Retraining
from svd2onnx.study.inspection import ENERGIES, LayerInspection, Spectrum, total_bytes
from svd2onnx.study.points import Sweep
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
    if report.retraining is not None:
        table.add_row("retraining", retraining_line(report.retraining))
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
        step = f", a token after {latency.past}" if latency.past else ""
        table.add_row(
            f"latency, batch {latency.batch}{step}",
            f"{latency.median_ms:.2f} ms, {latency.ratio:.2f} of float32 ({latency.reference_ms:.2f} ms)",
        )
    certificate = report.certificate
    table.add_row("quantized weights", f"{certificate.summary} on {certificate.provider}")
    for name, reason in certificate.unfused[:5]:
        table.add_row("not fused", f"{name}: {reason}")
    for name, reason in certificate.misplaced[:5]:
        table.add_row("misplaced", f"{name}: {reason}")
    return table


def retraining_line(retraining: Retraining) -> str:
    """What it gained on held-out batches, or that it gained nothing."""
    if retraining.gained:
        return (
            f"{retraining.steps} steps took the held-out error from {retraining.before:.5f} "
            f"to {retraining.after:.5f}"
        )
    return (
        f"{retraining.steps} steps gained nothing on held-out batches ({retraining.before:.5f}): "
        "the file is as it was before; more or other recovery data may help"
    )


def sweep_table(sweep: Sweep) -> Table:
    """A row for each point, by size within each curve."""
    names = sorted({name for point in sweep.points for name in point.metric})
    table = Table(title=sweep.source)
    for column in ("curve", "at", "file", "of float32", f"fidelity ({sweep.objective})", *names, "note"):
        table.add_column(column)
    for point in sorted(sweep.points, key=lambda p: (p.setting.curve, p.file_bytes)):
        at = f"{point.setting.value:g}" if point.setting.value else ""
        if point.failure:
            table.add_row(point.setting.curve, at, "", "", "", *("" for _ in names), point.failure)
            continue
        metrics = (f"{point.metric[name]:.4f}" if name in point.metric else "" for name in names)
        table.add_row(
            point.setting.curve,
            at,
            megabytes(point.file_bytes),
            f"{point.kept:.3f}",
            f"{point.fidelity:.5f}",
            *metrics,
            "",
        )
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
    """One line for each layer: effective ranks, and what is kept and lost in other forms."""
    names = ("8 bits", "4 bits", "pair")
    percents = "/".join(f"{share:.0%}" for share in ENERGIES)
    table = Table(
        *("layer", "kind", "shape", "float32", f"rank, {percents}", "x inputs", *names, "why float"),
        caption="rank: of so much of the energy of the weight, and of the weight times its inputs; "
        "forms: share of float32's bytes that is kept, and predicted error of the network",
    )
    for row in rows:
        table.add_row(
            row.name,
            row.kind,
            "x".join(map(str, row.shape)),
            megabytes(row.float_bytes),
            _ranks(row.spectrum),
            _ranks(row.used_spectrum),
            *(_gain(row, name) for name in names),
            row.note or "",
        )
    table.add_section()
    whole = sum(row.float_bytes for row in rows)
    kept = (f"{total_bytes(rows, name) / max(whole, 1):.0%}" for name in names)
    table.add_row("all", "", "", megabytes(whole), "", "", *kept)
    return table


def _ranks(spectrum: Spectrum | None) -> str:
    return "/".join(map(str, spectrum.ranks)) if spectrum else ""


def _gain(row: LayerInspection, name: str) -> str:
    gain = row.gains.get(name)
    if gain is None:
        return ""
    rank = f"r{found[1]}: " if (found := re.match(r"rank (\d+)", gain.form)) else ""
    return f"{rank}{gain.stored_bytes / row.float_bytes:.0%}, {gain.predicted_error:.1e}"


def bench_table(result: BenchResult) -> Table:
    """One line for each batch and graph: how fast, beside the reference and beside the machine's limit."""
    roofline = result.roofline
    rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in roofline.operations_per_s.items())
    table = Table(
        *("batch", "graph", "median ms", "p95 ms", "samples/s", "ratio", "limit ms", "x limit"),
        title=f"{result.device} ({_conditions(result)})",
        caption=f"limit: {roofline.bytes_per_s / 1e9:,.1f} GB/s; 10^9 operations a second: {rates}",
    )
    for batch in result.batches:
        for graph in batch.graphs:
            table.add_row(
                f"{batch.batch}, a token after {batch.past}" if batch.past else str(batch.batch),
                graph.name,
                f"{graph.median_ms:.2f}",
                f"{graph.p95_ms:.2f}",
                f"{graph.samples_per_s:.1f}",
                f"{graph.latency_ratio:.2f}",
                f"{graph.limit_ms:.2f}",
                f"{graph.median_ms / graph.limit_ms:.1f}",
            )
        table.add_section()
    return table


def footprint_table(result: BenchResult) -> Table:
    """One line for each graph: its file, and what loading it and the first run of the first batch cost."""
    on_gpu = result.provider == "cuda"
    table = Table(
        *("graph", "file", "load s", "ratio", "peak MB, load", "x file", "peak MB, run"),
        *(("GPU MB, load", "GPU MB, run", "not on the GPU") if on_gpu else ()),
    )
    first_s = result.graphs[0].footprint.load_s
    for graph in result.graphs:
        own = graph.footprint
        kept = "" if own.load_peak_mb is None else f"{own.load_peak_mb * 1e6 / graph.file_bytes:.1f}"
        gpu = (_mb(own.gpu_load_mb), _mb(own.gpu_run_mb), ", ".join(graph.elsewhere)) if on_gpu else ()
        table.add_row(
            graph.name,
            megabytes(graph.file_bytes),
            f"{own.load_s:.2f}",
            f"{own.load_s / first_s:.2f}",
            _mb(own.load_peak_mb),
            kept,
            _mb(own.run_peak_mb),
            *gpu,
        )
    return table


def generation_table(result: GeneratedTexts) -> Table:
    """One line for each graph: how fast it reads the prompt and generates."""
    table = Table(
        *("graph", "prompt ms", "tokens/s", "x reference", "tokens as the reference's"),
        title=f"{result.prompt_tokens} tokens of prompt ({result.provider}, {_threads(result.threads)}, "
        f"onnxruntime {result.onnxruntime})",
    )
    for made in result.graphs:
        table.add_row(
            made.name,
            f"{made.prefill_ms:.1f}",
            f"{made.tokens_per_s:.1f}",
            f"{made.speed_ratio:.2f}",
            f"first {made.same_tokens} of {len(made.tokens)}",
        )
    return table


def _threads(count: int | None) -> str:
    return f"{count or 'default'} thread{'s' * (count != 1)}"


def _conditions(result: BenchResult) -> str:
    threads = _threads(result.threads)
    tf32 = "" if result.tf32 is None else f", TF32 {'on' if result.tf32 else 'off'}"
    return f"{result.provider}, {threads}{tf32}, onnxruntime {result.onnxruntime}"


def _mb(count: float | None) -> str:
    return "" if count is None else f"{count:.0f}"


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
