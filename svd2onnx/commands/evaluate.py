"""evaluate: what a graph lost against its float32 original."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from svd2onnx.console import progress
from svd2onnx.options import DATA, PATH, PROVIDER


@click.command()
@click.argument("graph", type=PATH)
@click.option("--reference", type=PATH, required=True, help="The float32 ONNX file.")
@click.option("--task", type=PATH, required=True, help="The model file with the data and the metric.")
@DATA
@PROVIDER
def evaluate(graph: Path, reference: Path, task: Path, data: Path | None, provider: str) -> None:
    """Measure what GRAPH lost against --reference, on the evaluation data of --task."""
    from svd2onnx.loading import as_arrays, load_model_file
    from svd2onnx.tables import evaluation_table
    from svd2onnx_runtime import evaluate as run_evaluate

    model_file = load_model_file(task, data)
    with progress() as track:
        batches = track(model_file.inputs("evaluation"), "Evaluating")
        result = run_evaluate(
            graph,
            reference,
            (as_arrays(batch) for batch in batches),
            model_file.metric,
            model_file.objective,
            provider,
            model_file.summary,
        )
    Console().print(evaluation_table(result))
