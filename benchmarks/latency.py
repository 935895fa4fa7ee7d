"""Latency against the float32 graph: svd2onnx and onnxruntime's own quantized graphs, in one process.

    python -m benchmarks.latency models/minilm.py --data DATA -o build/latency

Embeddings stay float32 in every graph, as in ``benchmarks.frontier``, and errors are those of default
sessions on the evaluation batches. The graphs take turns on the same inputs, so that a slow moment of the
machine hits all of them, and a ratio is the median over rounds of the ratio within a round.

Whether a file notes the shapes of its values decides what onnxruntime fuses, and not always for the better:
the float32 graph is faster without, so that is what all are compared with, and onnxruntime's graph of int8 is
there both as its tool writes it and without. Bits are counted without shapes.

The graphs stay in the folder and are not built again; latency.json holds the numbers, and a table in
Markdown is printed.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.contenders import Contender
from benchmarks.graphs import tidy, tidy_bytes
from benchmarks.judging import judge_of
from benchmarks.markdown import table
from benchmarks.peers import ort_dynamic, ort_nbits, planned
from benchmarks.task import load_task
from svd2onnx_runtime import bench, open_session, synthetic_inputs
from svd2onnx_runtime.bench import BenchResult

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
REFERENCE, NOTED = "float32", "float32, shapes noted"


@dataclass(frozen=True)
class Quality:
    """What a graph lost and weighs: mean error of a default session, and bits per Linear weight."""

    error: float
    bits_per_weight: float


def contenders(bits: float) -> list[Contender]:
    """onnxruntime's 4-bit and dynamic int8 graphs, and svd2onnx at ``bits`` with either arithmetic."""
    return [
        Contender("onnxruntime 4-bit", ort_nbits.compress, {"algorithm": "default", "bits": 4, "block": 32}),
        Contender("onnxruntime dynamic int8", ort_dynamic.compress),
        Contender("onnxruntime dynamic int8, no shapes", ort_dynamic.compress, {"shapes": False}),
        Contender("svd2onnx", planned.compress, {"bits": bits}),
        Contender("svd2onnx int8 activations", planned.compress, {"bits": bits, "activations": "int8"}),
    ]


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("source", type=_FILE)
@click.option("-o", "--output", type=_FOLDER, required=True, help="Folder for graphs and results.")
@click.option("--data", type=_FOLDER, help="Folder of better data, if the model file takes one.")
@click.option("--bits", type=float, default=6.0, show_default=True, help="svd2onnx: bits per Linear weight.")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8), show_default=True)
@click.option("--sequence", type=int, default=128, show_default=True)
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--repeats", type=int, default=30, show_default=True)
@click.option("--calibration-samples", type=int, default=1024, show_default=True)
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(
    source: Path,
    output: Path,
    data: Path | None,
    bits: float,
    batches: tuple[int, ...],
    sequence: int,
    threads: tuple[int, ...],
    repeats: int,
    calibration_samples: int,
    provider: str,
) -> None:
    """Build the graphs that are missing, judge and time them, and write and print the results."""
    output.mkdir(parents=True, exist_ok=True)
    task = load_task(source, data, calibration_samples, output / "float32.onnx")
    judge = judge_of(task, output)
    bare = output / "reference.onnx"
    tidy(task.graph, bare)
    paths = {REFERENCE: bare, NOTED: task.graph}
    quality = dict.fromkeys(paths, Quality(0.0, 32.0))
    for contender in contenders(bits):
        path = output / f"{contender.name} {contender.label}.onnx".replace(" ", "-")
        contender.build(task, path)
        paths[contender.name] = path
        error = float(judge.errors(path, strict=False)[0].mean())
        quality[contender.name] = Quality(error, task.bits_per_weight(tidy_bytes(path)))
    session = open_session(task.graph, provider)
    inputs = [synthetic_inputs(session, {"batch": batch, "sequence": sequence}) for batch in batches]
    del session
    results = [bench(paths, inputs, provider, count, repeats) for count in threads]
    record = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "sequence": sequence,
        "quality": {name: asdict(own) for name, own in quality.items()},
        "results": [asdict(result) for result in results],
    }
    (output / "latency.json").write_text(json.dumps(record, indent=2) + "\n")
    click.echo(markdown(results, quality))


def markdown(results: list[BenchResult], quality: dict[str, Quality]) -> str:
    """One line for each graph; ratios to float32, and ms, for each number of threads and batch."""
    columns = [(r.threads or 0, timing) for r in results for timing in r.batches]
    header = ["graph", "bits", "error, deployed", "load, s", "peak memory, MB"]
    header += [f"{threads} thread{'s' * (threads != 1)}, batch {t.batch}" for threads, t in columns]
    rows = []
    for i, graph in enumerate(results[0].graphs):
        own, cost = quality[graph.name], graph.footprint
        rows.append(
            [
                graph.name,
                f"{own.bits_per_weight:.2f}",
                f"{own.error:.5f}",
                f"{cost.load_s:.2f}",
                "" if cost.run_peak_mb is None else f"{cost.run_peak_mb:.0f}",
                *(f"{t.graphs[i].latency_ratio:.2f} ({t.graphs[i].median_ms:.1f} ms)" for _, t in columns),
            ]
        )
    return table(header, rows)


if __name__ == "__main__":
    main()
