"""inspect: what a network is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from svd2onnx.console import progress
from svd2onnx.options import PATH, compression_options, settings_of


@click.command()
@click.argument("source", type=PATH)
@compression_options
def inspect(source: Path, data: Path | None, **arguments: Any) -> None:
    """List the layers of SOURCE: shapes, spectra, bytes, and why a layer would stay in float."""
    from svd2onnx.inspection import inspect_layers
    from svd2onnx.tables import inspection_table

    with progress() as track:
        rows = inspect_layers(source, settings_of(arguments), data, track)
    Console().print(inspection_table(rows))
