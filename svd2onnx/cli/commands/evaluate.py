"""evaluate: what a graph lost against its float32 original."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import cloup

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import DATA, PATH, PROVIDER, RANDOM_WEIGHTS, WEIGHTS, command, examples


@command(
    short_help="What a graph lost against its original.",
    epilog=examples(
        "svd2onnx evaluate minilm.onnx --reference minilm.float32.onnx --task models/minilm.py",
        "svd2onnx evaluate bert.onnx --reference float32.onnx --task models/bert.py --weights bert/",
    ),
)
@click.argument("graph", type=PATH)
@cloup.option_group(
    "Source and data",
    cloup.option("--reference", type=PATH, metavar="FILE", required=True, help="The float32 ONNX file."),
    cloup.option(
        "--task",
        type=PATH,
        metavar="FILE.py",
        required=True,
        help="The model file with the data and the metric.",
    ),
    DATA,
    WEIGHTS,
    RANDOM_WEIGHTS,
)
@cloup.option_group("Speed and resources", PROVIDER)
@spoken
def evaluate(
    graph: Path,
    reference: Path,
    task: Path,
    data: Path | None,
    weights: Path | None,
    random_weights: bool,
    provider: str,
    terminal: Terminal,
) -> None:
    """Measure what GRAPH lost against --reference, on the evaluation data of --task."""
    from svd2onnx.cli.paths import check_files, check_there

    check_files({"GRAPH": graph, "--reference": reference, "--task": task})
    check_there({"--data": data, "--weights": weights})

    from svd2onnx.cli.tables.evaluation import evaluation_table
    from svd2onnx.sources.model_file import as_arrays, load_model_file
    from svd2onnx.values.objective import parse_objective
    from svd2onnx_runtime import evaluate as run_evaluate

    model_file = load_model_file(task, data, weights, random_weights=random_weights)
    objective = parse_objective(model_file.objective)
    with terminal.progress() as track:
        batches = track(model_file.inputs("evaluation"), "Evaluating")
        result = run_evaluate(
            graph,
            reference,
            (as_arrays(batch) for batch in batches),
            model_file.metric,
            objective.kind,
            provider,
            summary=model_file.summary,
            output=objective.output,
        )
    terminal.answer(json.dumps(asdict(result), indent=2), evaluation_table(result))
