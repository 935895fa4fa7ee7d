"""sweep: size against accuracy, as the article draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import PATH, examples, run_options


@click.command(
    short_help="Size against accuracy, at many settings.",
    epilog=examples(
        "svd2onnx sweep models/minilm.py -o study",
        "svd2onnx sweep models/resnet20.py -o study --bits 8 --epsilon 0.2 --size 0.15 --only convolution",
    ),
)
@click.argument("source", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for sweep.json, .csv and .png.")
@click.option(
    "--bits",
    type=click.Choice(["8", "4", "2"]),
    multiple=True,
    default=("4", "8"),
    show_default=True,
    help="Of plain quantization and of the article's factors.",
)
@click.option(
    "--epsilon",
    "epsilons",
    type=float,
    multiple=True,
    default=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    show_default=True,
    help="Bounds of the article's rule.",
)
@click.option(
    "--size",
    "sizes",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    default=(0.25, 0.2, 0.15, 0.12, 0.1, 0.08),
    show_default=True,
    help="Shares of float32 to plan for.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Draws of calibration data for each of the article's points.",
)
@click.option("--metric", help="Of the model file, for the plot.  [default: its first, or fidelity]")
@run_options
@spoken
def sweep(
    source: Path,
    output: Path,
    bits: tuple[str, ...],
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
    from svd2onnx.cli.plots import draw_sweep, pyplot
    from svd2onnx.cli.tables.sweep import sweep_tables
    from svd2onnx.compute import executors
    from svd2onnx.compute.atomic_output import atomic_files
    from svd2onnx.study import sweep as sweeping
    from svd2onnx.study.points import wanted
    from svd2onnx.values.settings import Settings

    pyplot()  # missing, it should fail before the work and not after it
    settings = Settings(**arguments)
    widths = [int(own) for own in bits]
    points = wanted(widths, epsilons, sizes, samples=samples, retrained=settings.recover > 0)
    with executors.executor(executor), terminal.progress() as track:
        result = sweeping.sweep(source, output, points, settings, data, track)
    metric = metric or next((name for point in result.points for name in point.metric), None)
    with atomic_files(output / "sweep.png") as (draft,):
        draw_sweep(result, draft, metric)
    terminal.answer(result.to_json(), *sweep_tables(result))
