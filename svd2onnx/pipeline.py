"""The story of one compression, from a network to a verified ONNX file and its report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from svd2onnx import layers as layer_sites
from svd2onnx.calibrate import LayerStatistics, calibrate
from svd2onnx.errors import PlanError
from svd2onnx.export import export, export_float, infer_dynamic_shapes
from svd2onnx.loading import Batch, DynamicShapes, ModelFile, arguments_of, as_arrays, load_model_file
from svd2onnx.outputs import staged
from svd2onnx.planner import article_plan, uniform_plan
from svd2onnx.progress import Track, silent
from svd2onnx.realize import realize
from svd2onnx.report import (
    CompressionReport,
    LatencyReport,
    LayerReport,
    file_digest,
    tool_versions,
)
from svd2onnx.rewrite import rewrite
from svd2onnx.schema import CompressedLayer, CompressionPlan, LayerSite, QuantSpec
from svd2onnx.verify import check_strict
from svd2onnx_runtime import certify, evaluate, time_runs
from svd2onnx_runtime.session import resolve_provider

METHODS = ("quantize", "svd")
BENCH_BATCHES = (1, 8)
DEFAULT_BLOCKS = {8: 128, 4: 64, 2: 32}
"""Larger blocks are smaller and faster; fewer bits need smaller ones to stay accurate."""


@dataclass(frozen=True)
class Settings:
    """What the user asks for; see ``svd2onnx compress-export --help``."""

    method: str = "quantize"
    bits: int = 4
    block_size: int | None = None
    epsilon: float = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    calibration_samples: int = 512
    provider: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanError(f"the method must be one of {METHODS}, not {self.method!r}")

    @property
    def spec(self) -> QuantSpec:
        return QuantSpec(self.bits, self.block_size or DEFAULT_BLOCKS[self.bits])


@dataclass(frozen=True)
class Prepared:
    """A loaded network with its layers found, and the calibration batches."""

    model_file: ModelFile
    model: nn.Module
    sites: Sequence[LayerSite]
    batches: Sequence[Batch]

    @property
    def dynamic_shapes(self) -> DynamicShapes:
        """Those that the model file names, or those in which its batches differ."""
        return self.model_file.dynamic_shapes or infer_dynamic_shapes(
            [arguments_of(self.model, batch) for batch in self.batches]
        )


def compress_export(
    source: Path,
    output: Path,
    settings: Settings,
    *,
    data: Path | None = None,
    reference: Path | None = None,
    track: Track = silent,
) -> CompressionReport:
    """Compress the network of the model file ``source`` and write it to ``output``.

    Writes ``OUTPUT.report.json`` beside it and, where ``reference`` is given, the float32 ONNX there. The
    files appear only after the strict check passed.

    Raises:
        Svd2OnnxError: a stated failure; nothing is written then.
    """
    started = time.perf_counter()
    provider = resolve_provider(settings.provider)
    report_path = Path(f"{output}.report.json")
    kept = (reference,) if reference else ()
    with staged(output, report_path, *kept) as drafts, _plain_attention():
        draft, report_draft = drafts[:2]
        float_draft = drafts[2] if reference else draft.with_name("float32.onnx")
        prepared = prepare(source, settings, data, track)
        model, sites = prepared.model, prepared.sites
        batches = track(prepared.batches, "Calibrating", len(prepared.batches))
        statistics = calibrate(model, sites, batches)
        plan = make_plan(model, sites, statistics, settings, track)
        layers = realize(model, sites, plan, statistics, track)
        compressed = rewrite(model, sites, layers)

        example, shapes = example_of(model, prepared.batches), prepared.dynamic_shapes
        metadata = {"svd2onnx.method": plan.method}
        exports: tuple[Callable[[], object], ...] = (
            partial(export_float, model, example, shapes, float_draft),
            partial(export, compressed, layers, example, shapes, draft, metadata),
        )
        for write in track(exports, "Exporting", len(exports)):
            write()

        evaluation = list(prepared.model_file.inputs("evaluation"))
        objective = prepared.model_file.objective
        strict = check_strict(
            draft, compressed, model, track(evaluation, "Verifying", len(evaluation)), objective
        )
        deployed = evaluate(
            draft,
            float_draft,
            (as_arrays(b) for b in track(evaluation, "Evaluating", len(evaluation))),
            prepared.model_file.metric,
            objective,
            provider,
            prepared.model_file.summary,
        )
        inputs = as_arrays(arguments_of(model, evaluation[0]))
        certificate = certify(draft, provider, inputs=inputs)
        latency = tuple(
            measure_latency(draft, float_draft, inputs, batch, provider, settings.threads)
            for batch in track(BENCH_BATCHES, "Benchmarking", len(BENCH_BATCHES))
        )
        report = CompressionReport(
            source=str(source),
            output=str(output),
            method=plan.method,
            settings=asdict(settings),
            float_bytes=float_draft.stat().st_size,
            file_bytes=draft.stat().st_size,
            strict_relative_error=strict.relative_error,
            strict_fidelity=strict.fidelity,
            deployed=deployed,
            latency=latency,
            certificate=certificate,
            layers=tuple(layer_reports(sites, plan, layers)),
            sha256=file_digest(draft),
            seconds=time.perf_counter() - started,
            versions=tool_versions(),
        )
        report_draft.write_text(report.to_json())
    return report


def prepare(source: Path, settings: Settings, data: Path | None, track: Track = silent) -> Prepared:
    """Load the model file, take its calibration batches, and find the layers of its network.

    Raises:
        SourceError: see ``load_model_file`` and ``discover``.
        PlanError: a pattern matches no layer.
    """
    model_file = load_model_file(source, data)
    model = model_file.build()
    inputs = _limited(model_file.inputs("calibration"), settings.calibration_samples)
    batches = list(track(inputs, "Reading calibration data"))
    sites = layer_sites.discover(model, arguments_of(model, batches[0]))
    return Prepared(model_file, model, layer_sites.select(sites, settings.include, settings.exclude), batches)


def _limited(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """Whole batches until there are at least ``samples`` rows."""
    rows = 0
    for batch in batches:
        yield batch
        rows += next(iter(batch.values())).shape[0]
        if rows >= samples:
            return


def make_plan(
    model: nn.Module,
    sites: Sequence[LayerSite],
    statistics: Mapping[str, LayerStatistics],
    settings: Settings,
    track: Track = silent,
) -> CompressionPlan:
    """The plan of the chosen method.

    Raises:
        PlanError: there is nothing to compress.
    """
    if settings.method == "svd":
        plan = article_plan(model, sites, statistics, settings.spec, settings.epsilon, track)
    else:
        plan = uniform_plan(sites, settings.spec)
    if not plan.forms:
        raise PlanError(f"none of the {len(sites)} layers can be compressed; `svd2onnx inspect` says why")
    return plan


def example_of(model: nn.Module, batches: Sequence[Batch]) -> Batch:
    """Forward's arguments for the exporter, from the largest batch.

    The exporter takes a size of 1 for a constant, so no dynamic dimension may have it.
    """
    largest = max(batches, key=lambda batch: sum(tensor.numel() for tensor in batch.values()))
    return arguments_of(model, largest)


def layer_reports(
    sites: Sequence[LayerSite],
    plan: CompressionPlan,
    layers: Mapping[str, CompressedLayer],
) -> Iterator[LayerReport]:
    """One entry for each site: those that cannot be compressed last."""
    for site in sorted(sites, key=lambda site: site.skip_reason is not None):
        layer = layers.get(site.name)
        yield LayerReport(
            name=site.name,
            kind=site.kind,
            shape=site.shape,
            form=str(layer.form) if layer else "float",
            float_bytes=site.float_bytes,
            stored_bytes=layer.stored_bytes * site.copies if layer else site.float_bytes,
            note=site.skip_reason or plan.notes.get(site.name),
        )


def measure_latency(
    path: Path,
    reference: Path,
    inputs: Mapping[str, np.ndarray],
    batch: int,
    provider: str,
    threads: int | None,
) -> LatencyReport:
    """Time the file against the float32 graph on the first ``batch`` rows of ``inputs``."""
    rows = without_padding({name: array[:batch] for name, array in inputs.items()})
    timed = time_runs([reference, path], rows, provider, threads)
    reference_ms, median_ms = (float(seconds * 1e3) for seconds in np.median(timed.seconds, axis=0))
    return LatencyReport(batch, median_ms, reference_ms, float(timed.ratios[1]))


def without_padding(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``inputs`` cut to the longest row of their ``attention_mask`` [batch, positions], if any."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return dict(inputs)
    used = np.flatnonzero(mask.any(axis=0))
    cut = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(None)
    return {n: array[:, cut] if array.shape == mask.shape else array for n, array in inputs.items()}


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """PyTorch's fused transformer path reads weights around their modules; keep to the modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
