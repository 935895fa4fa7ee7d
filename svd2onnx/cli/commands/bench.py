"""bench: graphs timed side by side."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import DIM, PATH, PROVIDER, THREADS, command, examples, pairs, sizes_of


@command(
    short_help="Time graphs side by side.",
    epilog=examples(
        "svd2onnx bench minilm.onnx --reference minilm.float32.onnx --batch 1 --batch 8",
        "svd2onnx bench minilm.onnx --against int8=minilm.int8.onnx --dim sequence=32 --plot ratios.png",
        "svd2onnx bench minilm.onnx --threads 1 -o times.json",
    ),
)
@click.argument("graph", type=PATH)
@cloup.option_group(
    "Graphs",
    cloup.option(
        "--reference", type=PATH, metavar="FILE", help="A graph to compare with, such as the float32 one."
    ),
    cloup.option(
        "--against", multiple=True, metavar="NAME=FILE", help="A further graph to time beside them."
    ),
)
@cloup.option_group(
    "Inputs",
    cloup.option(
        "--batch",
        "batches",
        type=click.IntRange(1),
        metavar="N",
        multiple=True,
        default=(1, 8),
        show_default=True,
        help="Batch sizes to time.",
    ),
    DIM,
)
@cloup.option_group(
    "Speed and resources",
    cloup.option(
        "--repeats",
        type=click.IntRange(1),
        metavar="N",
        default=50,
        show_default=True,
        help="Timed runs of each graph.",
    ),
    PROVIDER,
    THREADS,
)
@cloup.option("-o", "--output", type=PATH, metavar="FILE", help="Also write the results here, as JSON.")
@cloup.option("--plot", type=PATH, metavar="FILE", help="Also draw latency against batch size here (PNG).")
@spoken
def bench(
    graph: Path,
    reference: Path | None,
    against: tuple[str, ...],
    batches: tuple[int, ...],
    repeats: int,
    output: Path | None,
    plot: Path | None,
    dims: tuple[str, ...],
    provider: str,
    threads: int | None,
    terminal: Terminal,
) -> None:
    """Time GRAPH, with --reference and others beside it, in one process on synthetic inputs.

    One of --with-past is timed twice: on a prompt, of --dim sequence=SIZE tokens, and on a single token after
    so many, or after --dim past_sequence=SIZE.
    """
    from svd2onnx.cli.paths import check_files
    from svd2onnx.compute.atomic_output import atomic_files, check_targets

    paths = ({"reference": reference} if reference else {}) | {"graph": graph}
    for name, path in pairs(against, "--against", "NAME=FILE").items():
        if name in paths:
            raise click.BadParameter(f"the name {name!r} is taken", param_hint="--against")
        paths[name] = Path(path)
    sizes = sizes_of(dims)
    check_files({"GRAPH" if name == "graph" else f"graph {name!r}": path for name, path in paths.items()})
    check_targets(*(path for path in (output, plot) if path))

    from svd2onnx.cli.plots import draw_latency, pyplot
    from svd2onnx.cli.tables.bench import bench_tables
    from svd2onnx_runtime import bench_by_batch, open_session, synthetic_inputs
    from svd2onnx_runtime.dimensions import PAST_LENGTH
    from svd2onnx_runtime.errors import naming
    from svd2onnx_runtime.past import past_names

    if plot:
        pyplot()  # missing, it should fail before the work and not after it
    session = open_session(graph, provider)
    runs = [sizes]
    with naming(graph):
        if past_names(session):
            step = {"sequence": 1, PAST_LENGTH: sizes.get(PAST_LENGTH, sizes["sequence"])}
            runs = [{**sizes, PAST_LENGTH: 0}, {**sizes, **step}]
        inputs = [synthetic_inputs(session, {**own, "batch": batch}) for own in runs for batch in batches]
    del session
    with terminal.progress() as track:
        timed = bench_by_batch(paths, inputs, provider, threads, repeats)
        *_, result = track(timed, "Timing batches", len(inputs))
    if output:
        with atomic_files(output) as (draft,):
            draft.write_text(result.to_json() + "\n")
    if plot:
        with atomic_files(plot) as (draft,):
            draw_latency(result, draft)
    terminal.answer(result.to_json(), *bench_tables(result))
