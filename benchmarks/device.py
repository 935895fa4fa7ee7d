"""Compress one network on several devices in one process: times, memory, and whether the plan is the same.

    python -m benchmarks.device models/minilm.py -o results [--devices cpu,cuda] [--size 0.13] [--recover 50]

The first device is what the others are compared with. Each calibrates, prices, decomposes, rounds, measures and
retrains by itself; and rounds what the first one planned with the statistics of the first. Exit code 1 where
a plan differs, or more codes than summing in another order explains.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.markdown import table
from svd2onnx.agreement import mean_error
from svd2onnx.calibrate import hold_out, without_probes
from svd2onnx.candidates import Candidate
from svd2onnx.choosing import priced_menu, uniform_plans
from svd2onnx.device import CPU, device_name, map_on
from svd2onnx.errors import Svd2OnnxError
from svd2onnx.goals import SizeGoal
from svd2onnx.layer_statistics import LayerStatistics
from svd2onnx.layers import weight_of
from svd2onnx.lowrank import factorize
from svd2onnx.pipeline import gather_statistics
from svd2onnx.preparation import Prepared, prepare
from svd2onnx.progress import silent
from svd2onnx.realize import realize
from svd2onnx.recover import recover
from svd2onnx.rewrite import rewrite
from svd2onnx.schema import CompressedLayer, CompressionPlan, QuantizedTensor
from svd2onnx.settings import Settings

LEAST_AGREEING = 0.97
"""Of codes: sums in another order move some across the middle between two, and those the rest of their rows."""


@dataclass(frozen=True)
class Stage:
    """One step: its time in seconds, and the most memory that was allocated on a GPU, in MB (None on the CPU)."""

    name: str
    seconds: float
    peak_mb: float | None


@dataclass(frozen=True)
class Agreement:
    """What one device makes like the first one: numbers are (equal, of).

    ``errors`` is the largest relative difference of a predicted error; ``codes`` are those of layers of the same
    form, and ``given`` those that are rounded with the plan and the statistics of the first device.
    """

    forms: tuple[int, int]
    errors: float
    codes: tuple[int, int]
    given: tuple[int, int]

    @property
    def is_same(self) -> bool:
        """Whether the plan is the same, and the codes are as far as can be."""
        shares = [equal / max(1, of) for equal, of in (self.codes, self.given)]
        return self.forms[0] == self.forms[1] and min(shares) >= LEAST_AGREEING


@dataclass
class Run:
    """What one device did: its results, and ``stages`` as they were timed."""

    prepared: Prepared
    stages: list[Stage] = field(default_factory=list)
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    menu: Mapping[str, Sequence[Candidate]] = field(default_factory=dict)
    plan: CompressionPlan | None = None
    layers: Mapping[str, CompressedLayer] = field(default_factory=dict)
    error: float = 0.0
    recovered: float = 0.0

    @property
    def device(self) -> str:
        return device_name(self.prepared.device)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done in the block."""
        is_gpu = self.prepared.device != CPU
        if is_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        yield
        if is_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() / 1e6 if is_gpu else None
        self.stages.append(Stage(name, seconds, peak))
        sys.stderr.write(f"{self.device}: {name}: {seconds:.2f} s\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on each device, write and print the results; 1 where something differs or fails."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        runs = [run_on(device, options) for device in options.devices]
    except Svd2OnnxError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    agreements = [agreement(runs[0], run) for run in runs[1:]]
    record = {
        "source": str(options.source),
        "size": options.size,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "runs": [
            {"device": run.device, "error": run.error, "recovered": run.recovered}
            | {"stages": [asdict(stage) for stage in run.stages]}
            for run in runs
        ],
        "agreements": [asdict(own) for own in agreements],
    }
    (options.output / "device.json").write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(markdown(runs, agreements) + "\n")
    return 0 if all(own.is_same for own in agreements) else 1


def run_on(device: str, options: argparse.Namespace) -> Run:
    """Everything between loading and exporting.

    Raises:
        Svd2OnnxError: the source cannot be loaded, there is no such device, or the network does not run there.
    """
    settings = Settings(
        device=device, calibration_samples=options.calibration_samples, weights=options.weights
    )
    prepared = prepare(options.source, settings, options.data)
    if prepared.obstacle is not None:
        raise Svd2OnnxError(f"the network does not run on {device}: {prepared.obstacle}")
    model, sites, where = prepared.model, prepared.sites, prepared.device
    _warm_up(where)
    fit, judging = hold_out(prepared.batches)
    run = Run(prepared)
    with run.stage("calibrate"):
        statistics = gather_statistics(prepared, settings, fit, judging, silent)
    with run.stage("price"):
        run.menu = priced_menu(prepared, statistics, judging, ("float",), silent)
    run.statistics = without_probes(statistics)
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    run.plan = SizeGoal(run.menu, uniform_plans(sites), size, int(options.size * size)).first()
    with run.stage("decompose"):
        matrices = [weight_of(model, site) for site in sites if site.kind == "linear"]
        for _ in map_on(where, lambda matrix: factorize(matrix.to(where)), matrices):
            pass
    with run.stage("round"):
        run.layers = realize(model, sites, run.plan, run.statistics, device=where)
    network = rewrite(model, sites, run.layers)
    with run.stage("measure"):
        original, compressed = prepared.placed(model, network)
        run.error = mean_error(original, compressed, judging, prepared.objective)
    recovery = list(prepared.source.inputs("recovery"))
    with run.stage("retrain"):
        objective, steps = prepared.objective, options.recover
        run.recovered = recover(model, sites, run.layers, recovery, objective, steps, device=where).after
    return run


def agreement(first: Run, other: Run) -> Agreement:
    """How ``other`` compares with ``first``."""
    assert first.plan is not None
    assert other.plan is not None
    prepared = other.prepared
    given = realize(prepared.model, prepared.sites, first.plan, first.statistics, device=prepared.device)
    pairs = [
        (candidate.error, known[candidate.form])
        for name, options in first.menu.items()
        for known in [{own.form: own.error for own in other.menu[name]}]
        for candidate in options
    ]
    forms, others = first.plan.forms, other.plan.forms
    return Agreement(
        forms=(sum(forms[name] == others.get(name) for name in forms), len({*forms, *others})),
        errors=max(abs(own - theirs) / max(own, theirs, 1e-30) for own, theirs in pairs),
        codes=equal_codes(first.layers, other.layers),
        given=equal_codes(first.layers, given),
    )


def equal_codes(
    first: Mapping[str, CompressedLayer], other: Mapping[str, CompressedLayer]
) -> tuple[int, int]:
    """How many codes are equal, and of how many, in layers of the same form."""
    equal = total = 0
    for name, layer in first.items():
        if name in other and other[name].form == layer.form:
            for own, theirs in zip(_tensors(layer), _tensors(other[name]), strict=True):
                equal += int((own.codes == theirs.codes).sum())
                total += own.codes.numel()
    return equal, total


def markdown(runs: Sequence[Run], agreements: Sequence[Agreement]) -> str:
    """Times of the stages, and of the first device's how many times as fast; then what agrees."""
    rows = []
    for stages in zip(*(run.stages for run in runs), strict=True):
        cells = [f"{stages[0].seconds:.2f}"]
        for stage in stages[1:]:
            peak = "" if stage.peak_mb is None else f", {stage.peak_mb:.0f} MB"
            cells.append(f"{stage.seconds:.2f} ({stages[0].seconds / stage.seconds:.1f}x{peak})")
        rows.append([stages[0].name, *cells])
    rows.append(["error, rounded", *(f"{run.error:.6f}" for run in runs)])
    rows.append(["error, retrained", *(f"{run.recovered:.6f}" for run in runs)])
    lines = [table(["stage, s", *(run.device for run in runs)], rows)]
    for run, own in zip(runs[1:], agreements, strict=True):
        lines.append(
            f"{run.device}: {'the same plan' if own.is_same else 'NOT THE SAME'}: {own.forms[0]} of {own.forms[1]} "
            f"forms, predicted errors to {own.errors:.1e}, {_share(own.codes)} of the codes, and {_share(own.given)} "
            "with the first device's statistics"
        )
    return "\n\n".join(lines)


def _share(counted: tuple[int, int]) -> str:
    return f"{100 * counted[0] / max(1, counted[1]):.3f}%"


def _tensors(layer: CompressedLayer) -> list[QuantizedTensor]:
    return [part for part in (layer.dense, layer.left, layer.right) if part]


def _warm_up(device: torch.device) -> None:
    """A GPU's libraries take seconds to load when they are first used."""
    if device == CPU:
        return
    square = torch.eye(64, dtype=torch.float64, device=device)
    for function in (torch.linalg.eigh, torch.linalg.svd, torch.linalg.cholesky, torch.linalg.qr):
        function(square)
    torch.nn.functional.conv2d(torch.ones(1, 1, 8, 8, device=device), torch.ones(1, 1, 3, 3, device=device))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.device", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="a model file or another source")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for device.json")
    parser.add_argument("--devices", type=lambda text: text.split(","), default="cpu,cuda")
    parser.add_argument(
        "--size", type=float, default=0.13, help="share of float32 to plan for; default: 0.13"
    )
    parser.add_argument("--recover", type=int, default=50, help="steps of retraining; default: 50")
    parser.add_argument("--calibration-samples", type=int, default=1024)
    parser.add_argument("--weights", type=Path, help="as of svd2onnx compress-export")
    parser.add_argument("--data", type=Path, help="likewise")
    return parser


if __name__ == "__main__":
    sys.exit(main())
