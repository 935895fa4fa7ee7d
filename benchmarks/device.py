"""Compress one network on several devices in one process: times, memory, and whether the plan is the same.

    python -m benchmarks.device models/minilm.py -o results [--devices cpu,cuda] [--size 0.13] [--recover 50]

The first device is what the others are compared with. Each calibrates, prices, decomposes, rounds, measures
and retrains by itself, and rounds with plan and statistics of the first one as well. Exit code 1 where a plan
is another, or more codes are than rounding explains.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.device_run import Agreement, Run, Task, agreement, run_on
from benchmarks.markdown import table
from svd2onnx.values.errors import Svd2OnnxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on each device, write and print the results; 1 where something differs or fails."""
    options = vars(_parser().parse_args(arguments))
    output, devices = options.pop("output"), options.pop("devices")
    task = Task(**options)
    output.mkdir(parents=True, exist_ok=True)
    try:
        runs = [run_on(device, task) for device in devices]
    except Svd2OnnxError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    agreements = [agreement(runs[0], run) for run in runs[1:]]
    record = {
        "source": str(task.source),
        "size": task.size,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "runs": [_record(run) for run in runs],
        "agreements": [asdict(own) for own in agreements],
    }
    (output / "device.json").write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(markdown(runs, agreements) + "\n")
    return 0 if all(own.is_same for own in agreements) else 1


def markdown(runs: Sequence[Run], agreements: Sequence[Agreement]) -> str:
    """Times of the stages, with how many times as fast the other devices are; then what agrees."""
    rows = []
    for stages in zip(*(run.stages for run in runs), strict=True):
        cells = [f"{stages[0].seconds:.2f}"]
        for stage in stages[1:]:
            peak = "" if stage.peak_mb is None else f", {stage.peak_mb:.0f} MB"
            cells.append(f"{stage.seconds:.2f} ({stages[0].seconds / stage.seconds:.1f}x{peak})")
        rows.append([stages[0].name, *cells])
    rows.append(["error, rounded", *(f"{run.error:.4e}" for run in runs)])
    rows.append(["error, retrained", *(f"{run.recovered:.4e}" for run in runs)])
    header = ["stage, s (times as fast, GPU memory)", *(run.device for run in runs)]
    told = [_told(run, own) for run, own in zip(runs[1:], agreements, strict=True)]
    return "\n\n".join([f"{torch.get_num_threads()} threads on the CPU", table(header, rows), *told])


def _told(run: Run, own: Agreement) -> str:
    verdict = "the same plan" if own.is_same else "NOT THE SAME"
    return (
        f"{run.device}: {verdict}: {own.forms[0]} of {own.forms[1]} forms; predicted errors differ by "
        f"{own.errors[0]:.1e} in the median and at most by {own.errors[1]:.1e}; {_share(own.codes)} of the "
        f"codes are equal, and {_share(own.given)} where plan and statistics are"
    )


def _share(counted: tuple[int, int]) -> str:
    return f"{100 * counted[0] / max(1, counted[1]):.3f}%"


def _record(run: Run) -> dict[str, object]:
    stages = [asdict(stage) for stage in run.stages]
    return {"device": run.device, "error": run.error, "recovered": run.recovered, "stages": stages}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.device", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="a model file or another source")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for device.json")
    parser.add_argument("--devices", type=lambda text: text.split(","), default="cpu,cuda")
    parser.add_argument(
        "--size", type=float, default=0.13, help="share of float32 to plan for; default: 0.13"
    )
    parser.add_argument("--recover", type=int, default=50, help="steps of retraining; default: 50")
    parser.add_argument("--calibration-samples", type=int, default=1024, help="default: 1024")
    parser.add_argument("--weights", type=Path, help="as of svd2onnx compress-export")
    parser.add_argument("--data", type=Path, help="likewise")
    return parser


if __name__ == "__main__":
    sys.exit(main())
