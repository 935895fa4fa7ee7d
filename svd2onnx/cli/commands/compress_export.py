"""compress-export: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import PATH, compression_options, examples, settings_of


@click.command(
    "compress-export",
    short_help="Compress a network, export it, verify and measure it.",
    epilog=examples(
        "svd2onnx compress-export models/minilm.py -o minilm.onnx --target-size 0.13x",
        "svd2onnx compress-export models/minilm.py --min-fidelity 0.99 --report minilm.html",
        "svd2onnx compress-export models/minilm.py --method quantize --bits 8 --json",
    ),
)
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, help="The ONNX file to write.  [default: SOURCE.onnx here]")
@click.option("--reference", type=PATH, help="Also write the float32 ONNX file here.")
@click.option("--report", "page", type=PATH, help="Also write the report as a page (HTML) here.")
@compression_options
@spoken
def compress_export(
    source: Path,
    output: Path | None,
    reference: Path | None,
    page: Path | None,
    data: Path | None,
    executor: str,
    terminal: Terminal,
    **arguments: Any,
) -> None:
    """Compress the network of SOURCE and write it as a verified ONNX file with a report.

    SOURCE is a model file (.py with build() and inputs(split)), an exported program (.pt2), a Hugging Face
    folder, a state dict (.pt, .safetensors; with --model), or a pickled network (.pt; with --trust-pickle).
    """
    from svd2onnx.cli.stages import compression_stages
    from svd2onnx.cli.tables.compression import compression_summary
    from svd2onnx.compute import executors
    from svd2onnx.pipeline import compress_export as pipeline

    settings = settings_of(arguments)
    with executors.executor(executor), terminal.progress(compression_stages(settings)) as track:
        report = pipeline.compress_export(
            source,
            output or Path(f"{source.stem}.onnx"),
            settings,
            data=data,
            reference=reference,
            page=page,
            track=track,
        )
    terminal.answer(report.to_json(), *compression_summary(report, reference))
