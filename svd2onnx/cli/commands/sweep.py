"""sweep: size against accuracy, as the article draws it."""

from __future__ import annotations

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
    command,
    examples,
    source_options,
)
from svd2onnx.values.choices import BITS


@command(
    short_help="Size against accuracy, at many settings.",
    epilog=examples(
        "svd2onnx sweep models/minilm.py -o study",
        "svd2onnx sweep models/resnet20.py -o study --bits 8 --epsilon 0.2 --size 0.15 --only convolution",
    ),
)
@SOURCE
@cloup.option_group(
    "Points",
    cloup.option(
        "--bits",
        type=click.Choice(BITS),
        multiple=True,
        default=(4, 8),
        show_default=True,
        help="Bits of plain quantization and of the article's factors.",
    ),
    cloup.option(
        "--epsilon",
        "epsilons",
        type=float,
        metavar="E",
        multiple=True,
        default=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
        show_default=True,
        help="Largest relative output error of a layer, for the article's method.",
    ),
    cloup.option(
        "--size",
        "sizes",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        multiple=True,
        default=(0.25, 0.2, 0.15, 0.12, 0.1, 0.08),
        show_default=True,
        help="Shares of the float32 file to plan for.",
    ),
    cloup.option(
        "--samples",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        help="Draws of calibration data for each point of the article's method.",
    ),
    RECOVER,
)
@source_options(CALIBRATION)
@LAYER_OPTIONS
@cloup.option_group("Speed and resources", PROVIDER, DEVICE, EXECUTOR)
@CACHE_OPTIONS
@cloup.option(
    "-o",
    "--output",
    type=PATH,
    metavar="DIR",
    required=True,
    help="Folder for sweep.json, sweep.csv and sweep.png.",
)
@cloup.option(
    "--metric", help="Metric of the model file to plot.  [default: its first, or fidelity if it has none]"
)
@spoken
def sweep(
    source: Path,
    output: Path,
    bits: tuple[int, ...],
    epsilons: tuple[float, ...],
    sizes: tuple[float, ...],
    samples: int,
    metric: str | None,
    data: Path | None,
    executor: str,
    terminal: Terminal,
    **arguments: Any,
) -> None:
    """Measure size against accuracy of SOURCE: the article's method, plain quantization, and plans.

    Every point is exported and measured by onnxruntime. A run that was stopped goes on where it was, and
    points are added to those that are there. --recover adds a retrained point to each planned one.
    """
    from svd2onnx.cli.paths import check_new_folder, check_source
    from svd2onnx.values.settings import Settings

    settings = Settings(**arguments)
    check_source(source, settings, data)
    check_new_folder(output)

    from svd2onnx.cli.plots import draw_sweep, pyplot
    from svd2onnx.cli.tables.sweep import sweep_tables
    from svd2onnx.compute import executors
    from svd2onnx.compute.atomic_output import atomic_files
    from svd2onnx.study import sweep as sweeping
    from svd2onnx.study.points import wanted

    pyplot()  # missing, it should fail before the work and not after it
    points = wanted(bits, epsilons, sizes, samples=samples, retrained=settings.recover > 0)
    with executors.executor(executor), terminal.progress() as track:
        result = sweeping.sweep(source, output, points, settings, data, track)
    metric = metric or next((name for point in result.points for name in point.metric), None)
    with atomic_files(output / "sweep.png") as (draft,):
        draw_sweep(result, draft, metric)
    terminal.answer(result.to_json(), *sweep_tables(result))
