"""compress-export: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from svd2onnx.console import progress
from svd2onnx.options import PATH, compression_options, settings_of


@click.command("compress-export")
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, help="The ONNX file to write.  [default: SOURCE.onnx here]")
@click.option("--reference", type=PATH, help="Also write the float32 ONNX file here.")
@compression_options
def compress_export(
    source: Path, output: Path | None, reference: Path | None, data: Path | None, **arguments: Any
) -> None:
    """Compress the network of SOURCE and write it as a verified ONNX file with a report.

    SOURCE is a model file: a Python file with build() and inputs(split).
    """
    from svd2onnx import pipeline
    from svd2onnx.tables import compression_table

    settings = settings_of(arguments)
    with progress() as track:
        report = pipeline.compress_export(
            source,
            output or Path(f"{source.stem}.onnx"),
            settings,
            data=data,
            reference=reference,
            track=track,
        )
    console = Console()
    console.print(compression_table(report))
    for warning in report.warnings:
        console.print(f"warning: {warning}")
    console.print(
        f"{report.output}, .report.json and .plan.json beside it, written in {report.seconds:.0f} s"
    )
