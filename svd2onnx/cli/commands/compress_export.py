"""compress-export: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click
import cloup

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import (
    CACHE_OPTIONS,
    CALIBRATION,
    DEVICE,
    EXECUTOR,
    LAYER_OPTIONS,
    PATH,
    PROVIDER,
    RECOVER,
    SOURCE,
    THREADS,
    command,
    examples,
    source_options,
)
from svd2onnx.values.choices import ACTIVATIONS, BITS, BLOCK_SIZES, DTYPES, METHODS, OPERATORS

FIRST_OPTIONS = cloup.option_group(
    "Common options",
    cloup.option(
        "-o",
        "--output",
        type=PATH,
        metavar="FILE",
        help="ONNX file to write.  [default: SOURCE.svd2onnx.onnx in the current folder]",
    ),
    cloup.option(
        "--target-size",
        metavar="SIZE",
        help="Largest size of the file: 0.15x or 15% of the float32 file, or 40MB.  [default: 0.15x]",
    ),
    cloup.option(
        "--min-fidelity",
        type=float,
        metavar="F",
        help="Find the smallest file of at least this fidelity, such as 0.99; 1 is a perfect copy. With "
        "--objective cosine it is the mean cosine similarity of the outputs, with kl exp(-mean KL "
        "divergence) of their softmax, with mse 1 - the mean of squared error / squared output.",
    ),
    cloup.option(
        "--target-latency",
        metavar="TIME",
        help="Longest time of a run: 0.5x or 50% of the float32 graph's, or 12ms; measured on this machine "
        "with --provider and --threads.",
    ),
    CALIBRATION,
)
GOAL_OPTIONS = cloup.option_group(
    "Goal",
    cloup.option(
        "--plan",
        type=PATH,
        metavar="FILE",
        help="Store each layer as this file says: OUTPUT.plan.json of an earlier run, edited or not.",
    ),
    RECOVER,
    cloup.option(
        "--method",
        type=click.Choice(METHODS),
        default="auto",
        show_default=True,
        help="auto chooses a form for each layer; quantize stores all layers alike; svd is the article's "
        "low-rank method.",
    ),
    cloup.option(
        "--bits",
        type=click.Choice(BITS),
        help="Bits of each weight, with --method quantize or svd.  [default: 4]",
    ),
    cloup.option(
        "--block-size",
        type=click.Choice(BLOCK_SIZES),
        help="Weights that share a scale, with --method quantize or svd.  [default: 128 at 8 bits, else 32]",
    ),
    cloup.option(
        "--epsilon",
        type=float,
        metavar="E",
        help="Largest relative output error of a layer, with --method svd.  [default: 0.1]",
    ),
    cloup.option(
        "--batch",
        type=click.IntRange(1),
        metavar="N",
        help="Batch size for --target-latency.  [default: 1]",
    ),
    cloup.option(
        "--sequence",
        type=click.IntRange(1),
        metavar="N",
        help='Text length for --target-latency: the dynamic dimension "sequence".  [default: 128]',
    ),
    cloup.option(
        "--latency-table",
        type=PATH,
        metavar="FILE",
        help="Layer times for --target-latency: OUTPUT.latency.json of an earlier run on this machine.",
    ),
)
FORMAT_OPTIONS = cloup.option_group(
    "File format",
    cloup.option(
        "--activations",
        type=click.Choice(ACTIVATIONS),
        default="auto",
        show_default=True,
        help="What MatMuls and convolutions compute in. int8 is faster on CPUs, for MatMuls at large "
        "batches, and rounds more. auto chooses for each layer with --target-latency, and is float without.",
    ),
    cloup.option(
        "--operator",
        type=click.Choice(OPERATORS),
        default="dequantize",
        show_default=True,
        help="How weights are stored: dequantize is DequantizeLinear, fused with its MatMul at load; folded "
        "is made float at load; matmulnbits is onnxruntime's fused kernel.",
    ),
    cloup.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="float32",
        show_default=True,
        help="What the graph computes in; float16 is for CUDA. Inputs and outputs stay float32.",
    ),
    cloup.option(
        "--external-data",
        is_flag=True,
        help="Write the weights to OUTPUT.data, which is memory-mapped when OUTPUT is loaded.",
    ),
    cloup.option(
        "--with-past",
        is_flag=True,
        help="Add past keys and values (KV cache) as inputs and outputs, to generate text token by token.",
    ),
)


@command(
    "compress-export",
    short_help="Compress a network, export it, verify and measure it.",
    epilog=examples(
        "svd2onnx compress-export models/minilm.py -o minilm.onnx --target-size 0.13x",
        "svd2onnx compress-export models/minilm.py --min-fidelity 0.99 --report minilm.html",
        "svd2onnx compress-export models/minilm.py --method quantize --bits 8 --json",
    ),
)
@SOURCE
@FIRST_OPTIONS
@GOAL_OPTIONS
@source_options()
@LAYER_OPTIONS
@FORMAT_OPTIONS
@cloup.option_group("Speed and resources", PROVIDER, DEVICE, THREADS, EXECUTOR)
@CACHE_OPTIONS
@cloup.option("--reference", type=PATH, metavar="FILE", help="Also write the float32 ONNX file here.")
@cloup.option(
    "--report", "page", type=PATH, metavar="FILE", help="Also write the report as an HTML page here."
)
@cloup.option("--overwrite", is_flag=True, help="Replace files that svd2onnx did not write, too.")
@spoken
def compress_export(
    source: Path,
    output: Path | None,
    reference: Path | None,
    page: Path | None,
    data: Path | None,
    executor: str,
    overwrite: bool,
    terminal: Terminal,
    **arguments: Any,
) -> None:
    """Compress the network of SOURCE and write it as a verified ONNX file with a report.

    SOURCE is a model file (.py with build() and inputs(split)), an exported program (.pt2), a Hugging Face
    folder, a state dict (.pt, .safetensors; with --model), or a pickled network (.pt; with --trust-pickle).
    """
    from svd2onnx.cli.ownership import check_replaceable
    from svd2onnx.cli.paths import check_outputs, check_source, default_output
    from svd2onnx.values.settings import Settings

    settings = Settings(**arguments)
    check_source(source, settings, data)
    output = output or default_output(source)
    check_outputs(source, output, reference, page)
    if not overwrite:
        check_replaceable(output, reference, page)

    # Slow to import, and therefore after all that can be refused without.
    from svd2onnx.cli.stages import compression_stages
    from svd2onnx.cli.tables.compression import compression_summary
    from svd2onnx.compute import executors
    from svd2onnx.pipeline import compress_export as pipeline

    with executors.executor(executor), terminal.progress(compression_stages(settings)) as track:
        report = pipeline.compress_export(
            source,
            output,
            settings,
            data=data,
            reference=reference,
            page=page,
            command=shlex.join(["svd2onnx", *sys.argv[1:]]),
            track=track,
        )
    terminal.answer(report.to_json(), *compression_summary(report, reference))
