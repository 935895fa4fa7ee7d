"""inspect: what a network is made of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from svd2onnx.console import Terminal, spoken
from svd2onnx.options import PATH, compression_options, examples, settings_of


@click.command(
    short_help="What a network is made of, and what it would gain.",
    epilog=examples(
        "svd2onnx inspect models/minilm.py",
        "svd2onnx inspect models/minilm.py --calibration-samples 0 --include 'encoder.*' --json",
    ),
)
@click.argument("source", type=PATH)
@compression_options
@spoken
def inspect(source: Path, data: Path | None, terminal: Terminal, **arguments: Any) -> None:
    """List the layers of SOURCE: shapes, spectra, bytes, and why a layer would stay in float."""
    from svd2onnx.inspection import inspect_layers
    from svd2onnx.tables import inspection_table

    with terminal.progress() as track:
        rows = inspect_layers(source, settings_of(arguments), data, track)
    terminal.answer(json.dumps([asdict(row) for row in rows], indent=2), inspection_table(rows))
