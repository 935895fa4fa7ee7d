"""Measure a folder of graphs on a GPU machine that has numpy and onnxruntime, and neither torch nor network.

    python -m benchmarks.gpu build/gpu -o results [--provider cuda] [--batches 1,8,64] [--sequence 128]

``benchmarks.gpu_graphs`` fills the folder elsewhere. Each graph is judged on the provider: its fidelity to
the float32 graph there, over the stored inputs, and whether its quantized MatMuls run fused. Those that run
are then timed side by side. results.json is written anew after each batch, so that a limit of time loses
one batch at most.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu_folder import GraphEntry, Manifest, read_manifest
from benchmarks.markdown import table
from svd2onnx_runtime import (
    BenchResult,
    Svd2OnnxError,
    bench_by_batch,
    certify,
    evaluate,
    open_session,
    synthetic_inputs,
)

_BATCHES = "1,2,4,8,16,32,64,128,256"


@dataclass(frozen=True)
class Verdict:
    """One graph on the provider: fidelity to the reference there, and its quantized MatMuls.

    ``unfused`` are (node, reason). ``failure`` says in one line why the graph does not run here; then
    the rest is empty.
    """

    name: str
    what: str
    fidelity: float | None = None
    standard_error: float | None = None
    quantized: int = 0
    unfused: tuple[tuple[str, str], ...] = ()
    failure: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge and time the graphs, write and print the results; 1 where a failure cut that short."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(options.folder)
    entries = [entry for entry in manifest.graphs if options.provider in entry.providers]
    verdicts: list[Verdict] = []
    result, status = None, 0
    try:
        session = open_session(options.folder / entries[0].file, options.provider)
        for entry in entries:
            verdicts.append(judge(entry, manifest, options.folder, options.provider))
            _say(f"{entry.name}: {verdicts[-1].failure or f'fidelity {verdicts[-1].fidelity:.5f}'}")
        running = {verdict.name for verdict in verdicts if verdict.failure is None}
        paths = {entry.name: options.folder / entry.file for entry in entries if entry.name in running}
        sizes = [{"batch": batch, "sequence": options.sequence} for batch in options.batches]
        inputs = [synthetic_inputs(session, own) for own in sizes]
        del session
        for result in bench_by_batch(paths, inputs, options.provider, options.threads, options.repeats):
            write(options.output / "results.json", manifest, options.sequence, verdicts, result)
            _say(f"batch {result.batches[-1].batch} is timed")
    except Svd2OnnxError as error:
        _say(f"error: {error}")
        status = 1
    if result:
        sys.stdout.write(markdown(verdicts, result) + "\n")
    return status


def judge(entry: GraphEntry, manifest: Manifest, folder: Path, provider: str) -> Verdict:
    """Certify the graph of ``entry`` and compare it with the reference; a failure is the verdict too."""
    path, reference = folder / entry.file, folder / manifest.graphs[0].file
    try:
        certificate = certify(path, provider, inputs=next(manifest.inputs(folder)))
        quality = evaluate(path, reference, manifest.inputs(folder), None, manifest.objective, provider)
    except Svd2OnnxError as error:
        if entry == manifest.graphs[0]:
            raise
        return Verdict(entry.name, entry.what, failure=str(error))
    return Verdict(
        name=entry.name,
        what=entry.what,
        fidelity=quality.fidelity,
        standard_error=quality.standard_error,
        quantized=certificate.planned,
        unfused=certificate.unfused,
    )


def write(
    path: Path, manifest: Manifest, sequence: int, verdicts: Sequence[Verdict], result: BenchResult
) -> None:
    """Write all that is known so far; ``driver`` is None without nvidia-smi."""
    record = {
        "source": manifest.source,
        "objective": manifest.objective,
        "sequence": sequence,
        "python": platform.python_version(),
        "system": platform.platform(),
        "driver": _driver(),
        "graphs": [asdict(verdict) for verdict in verdicts],
        "bench": asdict(result),
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def markdown(verdicts: Sequence[Verdict], result: BenchResult) -> str:
    """Conditions, then what each graph is and costs, then latency and throughput at each batch."""
    columns = [f"batch {timing.batch}" for timing in result.batches]
    ratios, rates = [], []
    for i, graph in enumerate(result.graphs):
        own = [timing.graphs[i] for timing in result.batches]
        ratios.append([graph.name, *(f"{t.latency_ratio:.2f} ({t.median_ms:.2f})" for t in own)])
        rates.append([graph.name, *(f"{t.samples_per_s:.0f} ({t.median_ms / t.limit_ms:.1f})" for t in own)])
    return "\n\n".join(
        [
            _conditions(result),
            _costs(verdicts, result),
            "Latency, of that of the first graph (median, ms):",
            table(["graph", *columns], ratios),
            "Samples a second (latency over the machine's limit):",
            table(["graph", *columns], rates),
        ]
    )


def _conditions(result: BenchResult) -> str:
    tf32 = {None: "", True: ", TF32 on", False: ", TF32 off"}[result.tf32]
    rates = ", ".join(f"{name} {rate / 1e12:.2f}" for name, rate in result.roofline.operations_per_s.items())
    return (
        f"{result.device} ({result.provider}{tf32}), onnxruntime {result.onnxruntime}; limits measured: "
        f"{result.roofline.bytes_per_s / 1e9:.0f} GB/s, 10^12 operations a second: {rates}"
    )


def _costs(verdicts: Sequence[Verdict], result: BenchResult) -> str:
    header = [
        "graph",
        "what",
        "file, MB",
        "fidelity",
        "fused",
        "load, s",
        "peak MB, load",
        "GPU MB, load / run",
    ]
    benched = {graph.name: graph for graph in result.graphs}
    rows = []
    for verdict in verdicts:
        if verdict.failure is not None:
            rows.append([verdict.name, f"{verdict.what}; fails: {verdict.failure}", *[""] * 6])
            continue
        graph = benched[verdict.name]
        cost = graph.footprint
        elsewhere = f"; on the CPU: {', '.join(graph.elsewhere)}" if graph.elsewhere else ""
        rows.append(
            [
                verdict.name,
                verdict.what + elsewhere,
                f"{graph.file_bytes / 1e6:.1f}",
                f"{verdict.fidelity:.5f}",
                _fused(verdict),
                f"{cost.load_s:.2f}",
                "" if cost.load_peak_mb is None else f"{cost.load_peak_mb:.0f}",
                "" if cost.gpu_load_mb is None else f"{cost.gpu_load_mb:.0f} / {cost.gpu_run_mb:.0f}",
            ]
        )
    return table(header, rows)


def _fused(verdict: Verdict) -> str:
    fused = verdict.quantized - len(verdict.unfused)
    return f"{fused} of {verdict.quantized}" if verdict.quantized else ""


def _driver() -> str | None:
    """Name and driver version of the GPUs, as nvidia-smi prints them."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--batches", type=_numbers, default=_BATCHES, help=f"default: {_BATCHES}")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of a text; default: 128")
    parser.add_argument("--threads", type=int, help="within an operator; default: onnxruntime's choice")
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of each graph; default: 50")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
