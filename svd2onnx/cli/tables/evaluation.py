"""What graphs give: fidelity and metric of one, and how fast several generate."""

from __future__ import annotations

from rich.table import Table

from svd2onnx.cli.tables.layout import table, threads
from svd2onnx.deployment.generation import GeneratedTexts
from svd2onnx.reporting.output_lines import masked_note
from svd2onnx_runtime import EvaluationResult


def evaluation_table(result: EvaluationResult) -> Table:
    """Fidelity and the task's metric of both graphs."""
    made = table("measure", "graph", "reference", title=f"{result.samples} samples, {result.provider}")
    error = f" +- {result.standard_error:.5f}" if result.standard_error is not None else ""
    of_output = f" of {result.output}" if len(result.outputs) > 1 else ""
    made.add_row(f"fidelity ({result.objective}{of_output})", f"{result.fidelity:.5f}{error}", "1")
    made.add_row("worst sample's error", f"{result.worst_error:.5f}", "0")
    for own in result.outputs:
        note = f", {masked_note(own)}" if own.masked else ""
        if len(result.outputs) > 1 or note:
            made.add_row(f"output {own.name} ({own.objective}{note})", f"{own.fidelity:.5f}", "1")
    for name, value in result.metric.items():
        made.add_row(name, f"{value:.4f}", f"{result.reference_metric[name]:.4f}")
    return made


def generation_table(result: GeneratedTexts) -> Table:
    """One line for each graph: how fast it reads the prompt and generates."""
    made = table(
        *("graph", "prompt ms", "tokens/s", "x reference", "same tokens"),
        title=f"{result.prompt_tokens} tokens of prompt ({result.provider}, {threads(result.threads)}, "
        f"onnxruntime {result.onnxruntime})",
        caption="same tokens: how many are the reference's before one differs",
    )
    for graph in result.graphs:
        made.add_row(
            graph.name,
            f"{graph.prefill_ms:.1f}",
            f"{graph.tokens_per_s:.1f}",
            f"{graph.speed_ratio:.2f}",
            f"first {graph.same_tokens} of {len(graph.tokens)}",
        )
    return made
