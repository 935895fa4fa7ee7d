"""The last act: the finished file is verified, certified, evaluated and timed, and a report tells of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from svd2onnx.compute.memory import release_freed
from svd2onnx.graph.export import weights_file
from svd2onnx.pipeline.builder import Builder
from svd2onnx.pipeline.plan_search import Found
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.pipeline.strict_check import check_model, check_strict
from svd2onnx.pipeline.timing import time_file
from svd2onnx.reporting.report import (
    Choice,
    CompressionReport,
    LayerReport,
    file_digest,
    tool_versions,
)
from svd2onnx.sources import live, load
from svd2onnx.sources.model_file import arguments_of, as_arrays
from svd2onnx.sources.rows import small
from svd2onnx.sources.source import Source
from svd2onnx.values.schema import CompressedLayer, CompressionPlan, LayerSite
from svd2onnx_runtime import EvaluationResult, certify, graph_bytes
from svd2onnx_runtime.machine import device_name
from svd2onnx_runtime.outputs import EQUAL

_NUMBERS = 1 << 21
"""Of inputs that are verified at a time: ten large images."""
_MUCH = 0.01
_TIMES = 4.0
"""An output loses much more than the judged one with an error above both: so large, and so many times its."""


def final_report(found: Found, builder: Builder, *, output: Path, started: float) -> CompressionReport:
    """What the drafted file is; ``started`` is when the run began, by ``time.perf_counter``.

    Raises:
        VerificationError: the file is no valid ONNX, or does not compute what the compressed network does.
    """
    prepared, workspace = builder.prepared, builder.workspace
    build, draft = found.build, workspace.graph
    evaluation = prepared.evaluation
    # Three networks run at a time, and what they keep of large images would be the most memory of a run.
    parts = [part for batch in evaluation for part in small(batch, _NUMBERS, prepared.row_axes)]
    batches = prepared.track(parts, "Verifying", len(parts))
    original = prepared.load_again()
    exact = builder.exact()
    if exact != draft:  # which the strict check does not read
        check_model(draft)
    strict = check_strict(exact, build.network, original, batches, prepared.objective, prepared.output)
    del original
    release_freed()
    deployed = builder.deployed()
    arguments = arguments_of(prepared.model, evaluation[0])
    file_bytes, external = graph_bytes(draft), weights_file(draft)
    gauge = found.choice.gauge if found.choice else 1.0
    return CompressionReport(
        source=prepared.source.name,
        output=str(output),
        method=build.plan.method,
        settings=asdict(prepared.settings),
        float_bytes=workspace.float_bytes,
        file_bytes=file_bytes,
        predicted_error=predicted_error(build.plan, found.choice),
        choice=found.choice,
        speed=found.speed,
        strict_relative_error=strict.relative_error,
        strict_fidelity=strict.fidelity,
        strict_error=strict.mean_error,
        strict_outputs=strict.outputs,
        deployed=deployed,
        measured_on=measured_on(prepared.source),
        certificate=certify(draft, prepared.provider, inputs=as_arrays(arguments)),
        latency=tuple(time_file(prepared, workspace, arguments)),
        layers=tuple(layer_reports(prepared.sites, build.plan, build.layers)),
        sha256=file_digest(draft),
        seconds=time.perf_counter() - started,
        warnings=tuple(_warnings(prepared, deployed)),
        versions=tool_versions(),
        retraining=build.retraining,
        curve=tuple(found.goal.curve(build.plan, file_bytes, gauge)),
        machine=device_name(prepared.provider),
        data_sha256=file_digest(external) if external.exists() else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def predicted_error(plan: CompressionPlan, choice: Choice | None) -> float | None:
    """The sum over the layers, times the gauge where there is one."""
    total = plan.predicted_error
    return total if total is None or choice is None else total * choice.gauge


def measured_on(source: Source) -> str:
    """What the fidelity of a file of ``source`` is of. A model file's split is held out by its author."""
    if not source.calibrated:
        return "random inputs"
    if any(text in source.warnings for text in (load.NOT_HELD_OUT, live.NOT_HELD_OUT)):
        return "calibration samples, not held out"
    return "held-out samples"


def lossy_outputs(deployed: EvaluationResult) -> Iterator[str]:
    """A warning for each output that lost much more than the one that was planned for.

    Integers are left out: labels change at the least error, and none can be planned for.
    """
    others = (own for own in deployed.outputs if own.name != deployed.output and own.objective != EQUAL)
    for own in others:
        if own.mean_error > max(_MUCH, _TIMES * deployed.mean_error):
            yield (
                f"output {own.name!r} loses much more than {deployed.output!r}, which was planned for: its "
                f"fidelity is {own.fidelity:.4f} ({own.objective}), against {deployed.fidelity:.4f} "
                f"({deployed.objective}); --objective {own.name}=KIND plans for it"
            )


def _warnings(prepared: Prepared, deployed: EvaluationResult) -> Iterator[str]:
    if prepared.output is None:
        yield from lossy_outputs(deployed)
    if prepared.settings.dtype == "float16" and prepared.provider == "cpu":
        yield (
            "float16 was measured on the CPU, which casts it to float32 and back: the fidelity holds "
            "for CUDA, the latency does not"
        )
    if prepared.obstacle is not None:
        yield (
            f"the network ran on the CPU, and only the work on its layers on {prepared.device}, where its "
            f"forward fails: {prepared.obstacle}"
        )
    yield from prepared.source.warnings
    if not prepared.calibrates:
        yield (
            "no calibration data: inputs were taken as equal and independent, so rounding and plan are "
            "blind to what the network does, and predicted errors are relative errors of weights"
        )


def layer_reports(
    sites: Sequence[LayerSite],
    plan: CompressionPlan,
    layers: Mapping[str, CompressedLayer],
) -> Iterator[LayerReport]:
    """One entry for each site: those that cannot be compressed last."""
    for site in sorted(sites, key=lambda site: site.skip_reason is not None):
        layer = layers.get(site.name)
        form = plan.forms[site.name] if layer else None
        yield LayerReport(
            name=site.name,
            kind=site.kind,
            shape=site.shape,
            form=str(form) if form else "float",
            float_bytes=site.float_bytes,
            stored_bytes=layer.stored_bytes * site.copies if layer else site.float_bytes,
            note=site.skip_reason or plan.notes.get(site.name),
            predicted_error=plan.errors.get(site.name),
            rank=form.rank if form and (form.factors or not form.dense) else None,
        )
