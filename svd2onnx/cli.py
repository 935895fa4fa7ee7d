"""The command line: click and rich only; whatever is slow to import is imported inside the commands.

Exit codes: 0 done, 1 a stated failure (one line on stderr), 2 wrong usage; interrupted: 130 (SIGINT), 143
(SIGTERM), 129 (SIGHUP).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from svd2onnx.failures import refusal
from svd2onnx.interruption import Interrupted, interruptible, leave
from svd2onnx.options import DATA, DIM, PATH, PROVIDER, THREADS, compression_options, source_options
from svd2onnx_runtime.errors import Svd2OnnxError, naming

if TYPE_CHECKING:
    from svd2onnx.settings import Settings

T = TypeVar("T")


class _Commands(click.Group):
    """Turns every failure into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with interruptible():
                return super().invoke(ctx)
        except Interrupted as stop:
            click.echo(f"error: {stop.line}", err=True)
            leave(stop.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Svd2OnnxError as error:
            _fail(refusal(error) or str(error))
        except Exception as error:
            if os.environ.get("SVD2ONNX_DEBUG"):
                raise
            if line := refusal(error):
                _fail(line)
            line = " ".join(str(error).split())
            _fail(
                f"unexpected {type(error).__name__}: {line} "
                "(a bug: please report it with the traceback that SVD2ONNX_DEBUG=1 shows)"
            )


def _fail(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="svd2onnx")
def main() -> None:
    """Compress a trained PyTorch network by low rank and quantization, and prove it on onnxruntime."""


def _settings(arguments: dict[str, Any]) -> Settings:
    from svd2onnx.settings import Settings

    block_size = arguments.pop("block_size")
    return Settings(
        bits=int(arguments.pop("bits")),
        block_size=int(block_size) if block_size else None,
        **arguments,
    )


@main.command()
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

    settings = _settings(arguments)
    with _progress() as progress:
        report = pipeline.compress_export(
            source,
            output or Path(f"{source.stem}.onnx"),
            settings,
            data=data,
            reference=reference,
            track=_tracker(progress),
        )
    console = Console()
    console.print(compression_table(report))
    for warning in report.warnings:
        console.print(f"warning: {warning}")
    console.print(
        f"{report.output}, .report.json and .plan.json beside it, written in {report.seconds:.0f} s"
    )


@main.command()
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
@source_options
def sweep(
    source: Path,
    output: Path,
    bits: tuple[str, ...],
    epsilons: tuple[float, ...],
    sizes: tuple[float, ...],
    samples: int,
    metric: str | None,
    data: Path | None,
    **arguments: Any,
) -> None:
    """Measure size against accuracy of SOURCE: the article's method, plain quantization, and plans.

    Every point is exported and measured by onnxruntime. A run that was stopped goes on where it was, and
    points are added to those that are there. --recover adds a retrained point to each planned one.
    """
    from svd2onnx import sweep as sweeping
    from svd2onnx.outputs import staged
    from svd2onnx.plots import draw_sweep, pyplot
    from svd2onnx.settings import Settings
    from svd2onnx.sweep_points import wanted
    from svd2onnx.tables import sweep_table

    pyplot()  # missing, it should fail before the work and not after it
    settings = Settings(**arguments)
    widths = [int(own) for own in bits]
    points = wanted(widths, epsilons, sizes, samples=samples, retrained=settings.recover > 0)
    with _progress() as progress:
        result = sweeping.sweep(source, output, points, settings, data, _tracker(progress))
    metric = metric or next((name for point in result.points for name in point.metric), None)
    with staged(output / "sweep.png") as (draft,):
        draw_sweep(result, draft, metric)
    Console().print(sweep_table(result))


@main.command()
@click.argument("source", type=PATH)
@compression_options
def inspect(source: Path, data: Path | None, **arguments: Any) -> None:
    """List the layers of SOURCE: shapes, spectra, bytes, and why a layer would stay in float."""
    from svd2onnx.inspection import inspect_layers
    from svd2onnx.tables import inspection_table

    with _progress() as progress:
        rows = inspect_layers(source, _settings(arguments), data, _tracker(progress))
    Console().print(inspection_table(rows))


@main.command()
@click.argument("graph", type=PATH)
@click.option("--reference", type=PATH, help="A graph to compare with, such as the float32 one.")
@click.option("--against", multiple=True, metavar="NAME=FILE", help="A further graph to time beside them.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=50, show_default=True)
@click.option("--json", "json_path", type=PATH, help="Also write the results here.")
@click.option("--plot", type=PATH, help="Also draw latency against batch here (PNG).")
@DIM
@PROVIDER
@THREADS
def bench(
    graph: Path,
    reference: Path | None,
    against: tuple[str, ...],
    batches: tuple[int, ...],
    repeats: int,
    json_path: Path | None,
    plot: Path | None,
    dims: tuple[str, ...],
    provider: str,
    threads: int | None,
) -> None:
    """Time GRAPH, with --reference and others beside it, in one process on synthetic inputs."""
    from svd2onnx.outputs import staged
    from svd2onnx.plots import draw_latency, pyplot
    from svd2onnx.tables import bench_table, footprint_table
    from svd2onnx_runtime import bench as run_bench
    from svd2onnx_runtime import open_session, synthetic_inputs

    if plot:
        pyplot()  # missing, it should fail before the work and not after it
    paths = ({"reference": reference} if reference else {}) | {"graph": graph}
    for name, path in _pairs(against, "--against", "NAME=FILE").items():
        if name in paths:
            raise click.BadParameter(f"the name {name!r} is taken", param_hint="--against")
        paths[name] = Path(path)
    session = open_session(graph, provider)
    sizes = _sizes(dims)
    with naming(graph):
        inputs = [synthetic_inputs(session, {**sizes, "batch": batch}) for batch in batches]
    del session
    result = run_bench(paths, inputs, provider, threads, repeats)
    console = Console()
    console.print(bench_table(result))
    console.print(footprint_table(result))
    if json_path:
        with staged(json_path) as (draft,):
            draft.write_text(result.to_json() + "\n")
    if plot:
        with staged(plot) as (draft,):
            draw_latency(result, draft)


@main.command()
@click.argument("graph", type=PATH)
@click.option("--reference", type=PATH, required=True, help="The float32 ONNX file.")
@click.option("--task", type=PATH, required=True, help="The model file with the data and the metric.")
@DATA
@PROVIDER
def evaluate(graph: Path, reference: Path, task: Path, data: Path | None, provider: str) -> None:
    """Measure what GRAPH lost against --reference, on the evaluation data of --task."""
    from svd2onnx.loading import as_arrays, load_model_file
    from svd2onnx.tables import evaluation_table
    from svd2onnx_runtime import evaluate as run_evaluate

    model_file = load_model_file(task, data)
    with _progress() as progress:
        batches = _tracker(progress)(model_file.inputs("evaluation"), "Evaluating")
        result = run_evaluate(
            graph,
            reference,
            (as_arrays(batch) for batch in batches),
            model_file.metric,
            model_file.objective,
            provider,
            model_file.summary,
        )
    Console().print(evaluation_table(result))


@main.command()
@click.argument("graph", type=PATH)
@DIM
@PROVIDER
def certify(graph: Path, dims: tuple[str, ...], provider: str) -> None:
    """Prove that GRAPH runs as it is meant to; exit 1 if not.

    Each quantized MatMul is one fused kernel, or its weight was made a float at load on purpose; and on
    CUDA no node is left to the CPU and nothing is copied between host and device.
    """
    from svd2onnx_runtime import certify as run_certify

    certificate = run_certify(graph, provider, {"batch": 2, **_sizes(dims)})
    for name, reason in certificate.unfused:
        click.echo(f"not fused: {name}: {reason}", err=True)
    for name, reason in certificate.misplaced:
        click.echo(f"misplaced: {name}: {reason}", err=True)
    if not certificate.planned:
        _fail(f"{graph} holds no quantized weight: there is nothing to certify")
    if certificate.unfused:
        _fail(
            f"{len(certificate.unfused)} of {certificate.planned} quantized weights did not fuse "
            f"on {certificate.provider}"
        )
    if certificate.misplaced:
        _fail(f"{len(certificate.misplaced)} nodes of {graph} are misplaced on {certificate.provider}")
    click.echo(
        f"all quantized weights run as planned on {certificate.provider}: {certificate.summary} "
        f"(onnxruntime {certificate.onnxruntime})"
    )
    if certificate.capture_obstacles is not None:
        obstacles = "; ".join(f"{name}: {reason}" for name, reason in certificate.capture_obstacles)
        click.echo(f"CUDA graph: {f'no ({obstacles})' if obstacles else 'can be captured'}")


def _sizes(dims: Iterable[str]) -> dict[str, int]:
    """``NAME=SIZE`` options as sizes; a dynamic dimension called "sequence" defaults to 64."""
    sizes = {"sequence": 64}
    for name, size in _pairs(dims, "--dim", "NAME=SIZE").items():
        if not size.isdigit() or int(size) < 1:
            raise click.BadParameter(f"{size!r} is no positive size", param_hint="--dim")
        sizes[name] = int(size)
    return sizes


def _pairs(options: Iterable[str], hint: str, form: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a dict, for an option ``hint`` that is to have this ``form``."""
    pairs = {}
    for option in options:
        name, _, value = option.partition("=")
        if not name or not value:
            raise click.BadParameter(f"{option!r} is not {form}", param_hint=hint)
        pairs[name] = value
    return pairs


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    # A failure leaves its one line alone on stderr: the bars go when they are done, and files get none.
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _tracker(progress: Progress) -> Any:
    def track(sequence: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        return progress.track(sequence, total=total, description=description)

    return track
