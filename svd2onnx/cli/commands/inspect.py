"""inspect: what a network is made of, and what its layers would gain."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cloup

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import (
    CALIBRATION,
    DEVICE,
    LAYER_OPTIONS,
    PATH,
    SOURCE,
    command,
    examples,
    source_options,
)


@command(
    short_help="What a network is made of, and what it would gain.",
    context_settings={"default_map": {"calibration_samples": 128}},  # enough to look
    epilog=examples(
        "svd2onnx inspect models/minilm.py",
        "svd2onnx inspect models/minilm.py --plot spectra.png",
        "svd2onnx inspect models/minilm.py --calibration-samples 0 --include 'encoder.*' --json",
    ),
)
@SOURCE
@source_options(CALIBRATION)
@LAYER_OPTIONS
@cloup.option_group("Speed and resources", DEVICE)
@cloup.option("--plot", type=PATH, metavar="FILE", help="Also draw the spectra of all layers here (PNG).")
@spoken
def inspect(source: Path, plot: Path | None, data: Path | None, terminal: Terminal, **arguments: Any) -> None:
    """List the layers of SOURCE: shapes, bytes, spectra, and what other forms would save and cost.

    Effective ranks are those of 90% and 99% of the energy, of the weight and of the weight times its inputs.
    The pair is the best one of low rank that is clearly smaller than 4 bits.
    """
    from svd2onnx.cli.paths import check_source
    from svd2onnx.compute.atomic_output import atomic_files, check_targets
    from svd2onnx.values.settings import Settings

    settings = Settings(**arguments)
    check_source(source, settings, data)
    check_targets(*([plot] if plot else []))

    from svd2onnx.cli.plots import draw_spectra, pyplot
    from svd2onnx.cli.stages import INSPECTION
    from svd2onnx.cli.tables.inspection import InspectionTable
    from svd2onnx.study.inspection import inspect_layers

    if plot:
        pyplot()  # missing, it should fail before the work and not after it
    with atomic_files(*([plot] if plot else [])) as drafts:
        with terminal.progress(INSPECTION) as track:
            layers = inspect_layers(source, settings, data, track)
        for draft in drafts:
            draw_spectra(layers, draft)
    terminal.answer(json.dumps([asdict(layer) for layer in layers], indent=2), InspectionTable(layers))
