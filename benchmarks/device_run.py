"""What one device does between loading and exporting, step by step, and how two of them compare."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from svd2onnx.calibration.calibrate import without_probes
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.network_error import mean_error
from svd2onnx.compression.lowrank import factorize
from svd2onnx.compression.realize import realize
from svd2onnx.compute.device import CPU, signature_of
from svd2onnx.compute.workers import finished
from svd2onnx.network.layers import weight_of
from svd2onnx.network.rewrite import rewrite
from svd2onnx.pipeline.goal_choice import priced_menu, uniform_plans
from svd2onnx.pipeline.preparation import Prepared, prepare
from svd2onnx.pipeline.statistics import gather_statistics
from svd2onnx.planning.candidates import Candidate
from svd2onnx.planning.goals import SizeGoal
from svd2onnx.retraining.recover import recover
from svd2onnx.values.errors import DeviceError
from svd2onnx.values.schema import CompressedLayer, CompressionPlan, QuantizedTensor
from svd2onnx.values.settings import Settings

LEAST_AGREEING = 0.97
"""Of codes: a sum that is rounded otherwise moves some across the middle between two; these move others."""


@dataclass(frozen=True)
class Stage:
    """One step: its time, and the most memory that was allocated on the GPU then; None on the CPU."""

    name: str
    seconds: float
    peak_mb: float | None


@dataclass(frozen=True)
class Agreement:
    """How two devices compare: counts are (equal, of).

    ``errors`` are the median and the largest relative difference of predicted errors. ``codes`` are those of
    layers of the same form; ``given`` those that are rounded with plan and statistics of the first device.
    """

    forms: tuple[int, int]
    errors: tuple[float, float]
    codes: tuple[int, int]
    given: tuple[int, int]

    @property
    def is_same(self) -> bool:
        """Whether the forms are the same, and the codes are nearly."""
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
        return signature_of(self.prepared.device)

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


@dataclass(frozen=True)
class Task:
    """What to compress, to which share of its float32 parameters, and the steps of its retraining."""

    source: Path
    size: float = 0.13
    recover: int = 50
    calibration_samples: int = 1024
    weights: Path | None = None
    data: Path | None = None


def run_on(device: str, task: Task) -> Run:
    """Everything between loading and exporting.

    Raises:
        Svd2OnnxError: the source cannot be loaded, or the device is not there or cannot run the network.
    """
    settings = Settings(device=device, calibration_samples=task.calibration_samples, weights=task.weights)
    prepared = prepare(task.source, settings, task.data)
    if prepared.obstacle is not None:
        raise DeviceError(f"the network does not run on {device}: {prepared.obstacle}")
    model, sites, where = prepared.model, prepared.sites, prepared.device
    _warm_up(where)
    run = Run(prepared)
    with run.stage("calibrate"):
        statistics = gather_statistics(prepared)
    with run.stage("price"):
        run.menu = priced_menu(prepared, statistics)
    run.statistics = without_probes(statistics)
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    run.plan = SizeGoal(run.menu, uniform_plans(sites), size, int(task.size * size)).first()
    with run.stage("decompose"):
        matrices = [weight_of(model, site) for site in sites if site.kind == "linear"]
        for _ in finished(factorize, matrices, lambda matrix: (matrix,), device=where):
            pass
    with run.stage("round"):
        run.layers = realize(model, sites, run.plan, run.statistics, device=where)
    network = rewrite(model, sites, run.layers)
    with run.stage("measure"):
        original, compressed = prepared.placed(model, network)
        run.error = mean_error(original, compressed, prepared.judging, prepared.objective)
    recovery = list(prepared.source.inputs("recovery"))
    with run.stage("retrain"):
        objective, steps = prepared.objective, task.recover
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
    differences = [abs(own - theirs) / max(own, theirs) for own, theirs in pairs if own or theirs]
    forms, others = first.plan.forms, other.plan.forms
    return Agreement(
        forms=(sum(forms[name] == others.get(name) for name in forms), len({*forms, *others})),
        errors=(median(differences), max(differences)),
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
