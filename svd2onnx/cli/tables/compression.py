"""The result of compress-export: what a user decides by, then layers and details, then what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from svd2onnx.cli.tables.layout import Row, labelled
from svd2onnx.reporting.output_lines import output_lines
from svd2onnx.reporting.report import Choice, CompressionReport, LatencyReport, Retraining
from svd2onnx.reporting.wording import counted_forms, size

_OUTPUTS = 8
"""So many outputs have a line."""
_NAMED = 5
"""So many of the weights that did not fuse are named; `svd2onnx certify` names all."""


def compression_summary(report: CompressionReport, reference: Path | None) -> Iterator[RenderableType]:
    """The report of one run; ``reference`` is where its float32 file is, if it was kept."""
    headline, layers, details = list(_headline(report)), list(_layers(report)), list(_details(report))
    width = max(len(label) for label, _ in (*headline, *layers, *details))
    yield Text(f"{report.source} ({report.method})", style="bold")
    yield ""
    yield labelled(headline, width)
    if report.warnings:
        yield ""
    for warning in report.warnings:
        yield Text.assemble(("warning:", "bold yellow"), f" {warning}")
    for rows in (layers, details):
        yield ""
        yield labelled(rows, width)
    yield ""
    yield f"{report.output}, .report.json and .plan.json beside it, written in {report.seconds:.0f} s"
    yield ""
    yield from _next(Path(report.output), reference)


def _headline(report: CompressionReport) -> Iterator[Row]:
    deployed = report.deployed
    error = f" +- {deployed.standard_error:.5f}" if deployed.standard_error is not None else ""
    yield (
        "fidelity",
        f"{deployed.fidelity:.5f}{error} ({deployed.objective}{_of_output(report)}, {deployed.samples} "
        f"{report.measured_on}, {deployed.provider})",
    )
    yield from _outputs(report)
    times = f"{1 / report.kept:.1f} times smaller" if report.kept < 1 else f"{report.kept:.2f} times larger"
    yield (
        "size",
        f"{times}, {report.kept:.1%} of float32: {size(report.file_bytes)} from {size(report.float_bytes)}",
    )
    for latency in report.latency:
        yield "speed", _speed(latency)
    if report.speed is not None:
        speed = report.speed
        yield (
            "speed",
            f"asked for {speed.asked:.2f} times float32's time; planned {speed.predicted:.2f}, "
            f"measured {speed.measured:.2f}",
        )
    yield from _certificate(report)


def _of_output(report: CompressionReport) -> str:
    """The output that is judged, where there are several."""
    return f" of {report.deployed.output}" if len(report.deployed.outputs) > 1 else ""


def _outputs(report: CompressionReport) -> Iterator[Row]:
    """Each output, or those that lost most."""
    lines = output_lines(report)
    shown = lines
    if len(lines) > _OUTPUTS:
        shown = sorted(lines, key=lambda line: line.deployed)[:_OUTPUTS]
    for line in shown:
        strict = "" if line.strict is None else f", strict {line.strict:.5f}"
        note = f"; {line.note}" if line.note else ""
        yield "output", f"{line.name}: {line.deployed:.5f} ({line.objective}{strict}){note}"
    if len(lines) > len(shown):
        yield "output", f"and {len(lines) - len(shown)} more that lost less, in the report"


def _speed(latency: LatencyReport) -> str:
    step = f", a token after {latency.past}" if latency.past else ""
    return (
        f"{latency.ratio:.2f} times float32's time at batch {latency.batch}{step}: "
        f"{_ms(latency.median_ms)} against {_ms(latency.reference_ms)}"
    )


def _ms(time: float) -> str:
    """With about three digits."""
    digits = sum(time < most for most in (100, 10, 0.1))
    return f"{time:,.{digits}f} ms"


def _certificate(report: CompressionReport) -> Iterator[Row]:
    certificate = report.certificate
    where = f"({certificate.provider})"
    if not certificate.planned:
        yield "certificate", f"none: the file holds no quantized weight {where}"
        return
    verdict = Text("passed", "green") if certificate.ok else Text("failed", "bold red")
    yield "certificate", verdict + f": {certificate.summary} quantized weights {where}"
    for label, found in (("not fused", certificate.unfused), ("misplaced", certificate.misplaced)):
        for name, reason in found[:_NAMED]:
            yield label, f"{name}: {reason}"
        if len(found) > _NAMED:
            yield label, f"and {len(found) - _NAMED} more"


def _layers(report: CompressionReport) -> Iterator[Row]:
    """Compressed layers by kind and form, and the others in one line."""
    forms = sorted(counted_forms(report.layers).items())
    for (kind, form), count in forms:
        if form != "float":
            yield "layers", f"{count} x {kind}: {form}"
    kept = [f"{count} x {kind}" for (kind, form), count in forms if form == "float"]
    if kept:
        yield "layers", f"kept in float: {', '.join(kept)}"


def _details(report: CompressionReport) -> Iterator[Row]:
    for name, value in report.deployed.metric.items():
        yield name, f"{value:.4f} (float32: {report.deployed.reference_metric[name]:.4f})"
    yield (
        "strict fidelity",
        f"{report.strict_fidelity:.5f} (on {report.measured_on}; ONNX and PyTorch differ by "
        f"{report.strict_relative_error:.0e})",
    )
    if report.latency:
        yield "latency", "times are medians, and ratios are medians over pairs of runs"
    if report.predicted_error is not None:
        yield "error", f"{report.predicted_error:.5f} predicted, {report.strict_error:.5f} measured"
    if report.choice is not None:
        yield "against uniform", against_uniform(report.choice)
    if report.retraining is not None:
        yield "retraining", retraining_line(report.retraining)


def against_uniform(choice: Choice) -> str:
    """The plan and the uniform quantization that it is measured against, on held-out data."""
    shipped = "uniform" if choice.uniform_wins else "planned"
    bytes_ = "no more bytes" if choice.uniform_fits else "more bytes"
    return (
        f"{choice.planned_error:.5f} planned, {choice.uniform_error:.5f} {choice.uniform_form} of {bytes_} "
        f"(held-out data): {shipped} is shipped"
    )


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


def _next(output: Path, reference: Path | None) -> Iterator[RenderableType]:
    """Commands to type next, each whole on its line so that it can be copied."""
    commands = [["package", str(output), "-o", f"{output.with_suffix('')}-package"]]
    if reference is not None:
        commands.insert(0, ["bench", str(output), "--reference", str(reference)])
    yield "Next:"
    for command in commands:
        line = Text(f"  svd2onnx {shlex.join(command)}", no_wrap=True, overflow="ignore")
        yield Group(line)  # a Text by itself would be joined to others, and wrapped
