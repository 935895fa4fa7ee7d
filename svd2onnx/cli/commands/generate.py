"""generate: text from a prompt, one token at a time, and how fast."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import PATH, PROVIDER, THREADS, WEIGHTS, command, examples


@command(
    short_help="Continue a prompt, and say how fast.",
    epilog=examples(
        "svd2onnx generate smollm2.onnx --task models/smollm2.py --prompt 'The capital of France is'",
        "svd2onnx generate phi2.onnx --reference float32.onnx --task phi-2/ --prompt 'Once' --tokens 32",
    ),
)
@click.argument("graph", type=PATH)
@cloup.option_group(
    "Text",
    cloup.option("--prompt", required=True, help="The text to continue."),
    cloup.option(
        "--tokens",
        type=click.IntRange(2),
        metavar="N",
        default=64,
        show_default=True,
        help="Number of tokens to add.",
    ),
    cloup.option(
        "--task",
        type=PATH,
        metavar="PATH",
        required=True,
        help="What has the tokenizer: a model file or a Hugging Face folder.",
    ),
    WEIGHTS,
)
@cloup.option_group(
    "Speed and resources",
    cloup.option(
        "--reference", type=PATH, metavar="FILE", help="A graph to compare with, such as the float32 one."
    ),
    cloup.option(
        "--repeats",
        type=click.IntRange(1),
        metavar="N",
        default=3,
        show_default=True,
        help="Timed runs of each graph.",
    ),
    PROVIDER,
    THREADS,
)
@spoken
def generate(
    graph: Path,
    reference: Path | None,
    task: Path,
    prompt: str,
    tokens: int,
    repeats: int,
    weights: Path | None,
    provider: str,
    threads: int | None,
    terminal: Terminal,
) -> None:
    """Continue a prompt with GRAPH, a file of compress-export --with-past, by the likeliest tokens.

    With --reference both generate in turn, in one process.
    """
    from svd2onnx.cli.paths import check_files, check_there

    check_files({"GRAPH": graph, "--reference": reference})
    check_there({"--task": task, "--weights": weights})

    from svd2onnx.cli.tables.evaluation import generation_table
    from svd2onnx.deployment.generation import generate_texts, tokenizer_of

    paths = ({"reference": reference} if reference else {}) | {"graph": graph}
    tokenizer = tokenizer_of(task, weights)
    with terminal.progress() as track:
        result = generate_texts(
            paths,
            tokenizer,
            prompt,
            tokens,
            provider=provider,
            threads=threads,
            repeats=repeats,
            track=track,
        )
    texts = (f"{made.name}: {prompt}{made.text}" for made in result.graphs)
    terminal.answer(result.to_json(), *texts, generation_table(result))
