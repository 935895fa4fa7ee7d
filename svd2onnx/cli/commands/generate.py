"""generate: text from a prompt, one token at a time, and how fast."""

from __future__ import annotations

from pathlib import Path

import click

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import PATH, PROVIDER, THREADS, WEIGHTS, examples


@click.command(
    short_help="Continue a prompt, and say how fast.",
    epilog=examples(
        "svd2onnx generate smollm2.onnx --task models/smollm2.py --prompt 'The capital of France is'",
        "svd2onnx generate phi2.onnx --reference float32.onnx --task phi-2/ --prompt 'Once' --tokens 32",
    ),
)
@click.argument("graph", type=PATH)
@click.option("--reference", type=PATH, help="A graph to compare with, such as the float32 one.")
@click.option(
    "--task", type=PATH, required=True, help="What has the tokenizer: a model file or a Hugging Face folder."
)
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="How many to add.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@WEIGHTS
@PROVIDER
@THREADS
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
