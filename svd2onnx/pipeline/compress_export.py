"""The story of one compression, from a network to a verified ONNX file and its report."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

from svd2onnx.calibration.calibrate import calibrate, hold_out, in_small_batches, probe_draws, without_probes
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compute.atomic_output import atomic_files
from svd2onnx.compute.device import signature_of
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.compute.progress import Track, silent
from svd2onnx.graph.export import export_float, weights_file
from svd2onnx.latency.latency_model import measure_latency_model, read_table
from svd2onnx.memo.cache import Cache, open_cache
from svd2onnx.memo.memoizer import DiskMemo, disk_memo
from svd2onnx.pipeline.builder import Builder
from svd2onnx.pipeline.goal_choice import INT8_ON_CPU, choose_goal
from svd2onnx.pipeline.latency_report import measure_latency, measure_step
from svd2onnx.pipeline.plan_search import search_plan
from svd2onnx.pipeline.preparation import Prepared, prepare
from svd2onnx.pipeline.strict_check import check_strict
from svd2onnx.reporting.page import render
from svd2onnx.reporting.report import (
    Choice,
    CompressionReport,
    LayerReport,
    file_digest,
    tool_versions,
)
from svd2onnx.sources.model_file import Batch, arguments_of, as_arrays
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressedLayer, CompressionPlan, LayerSite
from svd2onnx.values.settings import Settings
from svd2onnx_runtime import certify, graph_bytes
from svd2onnx_runtime.machine import device_name
from svd2onnx_runtime.session import resolve_provider

BENCH_BATCHES = (1, 8)


def compress_export(
    source: Path,
    output: Path,
    settings: Settings,
    *,
    data: Path | None = None,
    reference: Path | None = None,
    page: Path | None = None,
    track: Track = silent,
) -> CompressionReport:
    """Compress the network of ``source``, of any kind (see ``svd2onnx.sources``), and write it to ``output``.

    Writes ``OUTPUT.report.json`` and ``OUTPUT.plan.json`` beside it and, where ``reference`` is given, the
    float32 ONNX there, and to ``page`` the report as HTML. The files appear only after the strict check
    passed.

    Raises:
        Svd2OnnxError: a stated failure; nothing is written then.
    """
    started = time.perf_counter()
    provider = resolve_provider(settings.provider)
    if settings.activations == "int8" and provider != "cpu":
        raise PlanError(INT8_ON_CPU.format(provider))
    table = read_table(settings.latency_table, provider, settings.threads)
    beside = [Path(f"{output}.report.json"), Path(f"{output}.plan.json")]
    timed = [Path(f"{output}.latency.json")] if settings.target_latency else []
    pages = [page] if page else []
    kept = [weights_file(reference), reference] if reference else []
    targets = [output, *beside, *timed, weights_file(output), *pages, *kept]
    optional = [] if settings.external_data else [weights_file(output)]
    optional += kept[:1]
    with cache_of(settings, output) as cache, atomic_files(*targets, optional=optional) as drafts:
        draft, report_draft, plan_draft = drafts[:3]
        float_draft = drafts[-1] if reference else draft.with_name(f"{draft.name}.float32.onnx")
        prepared = prepare(source, settings, data, track)
        model = prepared.model
        traced = prepared.traced(model)
        export_float(model, prepared.example, prepared.dynamic_shapes, float_draft, traced=traced)
        fit, judging = hold_out(prepared.batches)
        memo = memo_of_run(cache, prepared, float_draft, settings, fit, judging)
        statistics = gather_statistics(prepared, settings, fit, judging, track, memo)
        latency_model = None
        if settings.target_latency:
            choices = settings.choice_of_activations(provider)
            latency_model = measure_latency_model(
                model, prepared.sites, float_draft, settings.sizes, choices, table, track
            )
            drafts[3].write_text(latency_model.times.table.to_json())
        float_bytes = graph_bytes(float_draft)
        decompose = memo.decompose(prepared.device)
        goal = choose_goal(
            prepared,
            settings,
            statistics,
            judging,
            float_bytes,
            provider,
            latency_model,
            track,
            decompose,
            memo,
        )
        statistics = without_probes(statistics)
        builder = Builder(
            prepared,
            statistics,
            judging,
            draft,
            float_draft,
            provider,
            track,
            settings.form,
            settings.external_data,
            decompose,
            memo,
            settings.seed,
        )
        build, choice, speed, reached = search_plan(goal, builder, latency_model, settings.target_latency)
        if settings.recover:
            build = builder.recovered(build, settings.recover)
            builder.write(build)
        del goal, statistics
        builder.let_go()

        evaluation = prepared.evaluation
        batches = track(evaluation, "Verifying", len(evaluation))
        strict = check_strict(builder.exact(), build.network, model, batches, prepared.objective)
        inputs = as_arrays(arguments_of(model, evaluation[0]))
        is_fixed = not any(0 in axes for axes in prepared.dynamic_shapes.values())
        bench_batches = (len(next(iter(inputs.values()))),) if is_fixed else BENCH_BATCHES
        pasts = (inputs["input_ids"].shape[1],) if settings.with_past else ()
        report = CompressionReport(
            source=str(source),
            output=str(output),
            method=build.plan.method,
            settings=asdict(settings),
            float_bytes=float_bytes,
            file_bytes=graph_bytes(draft),
            predicted_error=predicted_error(build.plan, choice),
            choice=choice,
            speed=speed,
            strict_relative_error=strict.relative_error,
            strict_fidelity=strict.fidelity,
            strict_error=strict.mean_error,
            deployed=builder.deployed(),
            certificate=certify(draft, provider, inputs=inputs),
            latency=tuple(
                measure_latency(draft, float_draft, inputs, batch, provider, settings.threads)
                for batch in track(bench_batches, "Benchmarking", len(bench_batches))
            )
            + tuple(measure_step(draft, float_draft, past, 1, provider, settings.threads) for past in pasts),
            layers=tuple(layer_reports(prepared.sites, build.plan, build.layers)),
            sha256=file_digest(draft),
            seconds=time.perf_counter() - started,
            warnings=tuple(_warnings(settings, provider, prepared, cache)),
            versions=tool_versions(),
            retraining=build.retraining,
            curve=tuple(reached.curve(build.plan, graph_bytes(draft), choice.gauge if choice else 1.0)),
            machine=device_name(provider),
            data_sha256=file_digest(weights_file(draft)) if weights_file(draft).exists() else None,
        )
        report_draft.write_text(report.to_json())
        if page:
            drafts[-1 - len(kept)].write_text(render(report), encoding="utf-8")
        plan_draft.write_text(json.dumps(build.plan.to_json(), indent=2) + "\n")
    return report


def cache_of(settings: Settings, output: Path) -> AbstractContextManager[Cache]:
    """Where parts of this run are kept: for good if that was asked for, else until it is done."""
    kept = settings.resume or settings.cache is not None
    return open_cache(settings.cache or Path(f"{output}.cache"), fresh=not kept, kept=kept)


def memo_of_run(
    cache: Cache,
    prepared: Prepared,
    reference: Path,
    settings: Settings,
    fit: Sequence[Batch],
    judging: Sequence[Batch],
) -> DiskMemo:
    """For all that depends on the network, whose float32 file is ``reference``, and on these batches."""
    sites = list(prepared.sites)
    mode = _objective(prepared, settings) if settings.calibration_samples else "no data"
    asked = settings.resume or settings.cache is not None
    # Written for an interruption that may not come, the statistics of a large network cost too much.
    remembers = cache if asked or not prepared.is_large else None
    devices = signature_of(prepared.device), signature_of(prepared.passes)  # sums round by them
    return disk_memo(
        remembers, prepared.model, reference, devices, sites, settings.seed, mode, list(fit), list(judging)
    )


def gather_statistics(
    prepared: Prepared,
    settings: Settings,
    fit: Sequence[Batch],
    judging: Sequence[Batch],
    track: Track,
    memoize: Memoize = no_memo,
) -> dict[str, LayerStatistics]:
    """Of every usable layer; none at all where no calibration is asked for."""
    if settings.calibration_samples == 0 or not prepared.source.calibrated:
        return {}
    priced = settings.method == "auto" and settings.plan is None
    if prepared.is_large:
        fit, judging = in_small_batches(fit), in_small_batches(judging)

    @functools.cache
    def gathered() -> dict[str, LayerStatistics]:
        (network,) = prepared.placed(prepared.model)
        return calibrate(
            network,
            prepared.sites,
            track(fit, "Calibrating", len(fit)),
            _objective(prepared, settings),
            track(judging, "Probing", len(judging)) if priced else (),
            probe_draws(judging),
            settings.seed,
            prepared.store,
        )

    # Apart, because a given plan needs no probes, and may be of a run that had some.
    moments = memoize("moments", (), lambda: without_probes(gathered()))
    if not priced:
        return moments
    probes = memoize("probes", (), lambda: {name: own.probes for name, own in gathered().items()})
    return {name: replace(own, probes=probes[name]) for name, own in moments.items()}


def _objective(prepared: Prepared, settings: Settings) -> str | None:
    """What gradients are of; the article's method does without them."""
    return None if settings.method == "svd" else prepared.objective


def predicted_error(plan: CompressionPlan, choice: Choice | None) -> float | None:
    """The sum over the layers, times the gauge where there is one."""
    total = plan.predicted_error
    return total if total is None or choice is None else total * choice.gauge


def _warnings(settings: Settings, provider: str, prepared: Prepared, cache: Cache) -> Iterator[str]:
    source = prepared.source
    if settings.dtype == "float16" and provider == "cpu":
        yield (
            "float16 was measured on the CPU, which casts it to float32 and back: the fidelity holds "
            "for CUDA, the latency does not"
        )
    if prepared.obstacle is not None:
        yield (
            f"the network ran on the CPU, and only the work on its layers on {prepared.device}, where its "
            f"forward fails: {prepared.obstacle}"
        )
    yield from source.warnings
    if settings.calibration_samples == 0 or not source.calibrated:
        yield (
            "no calibration data: inputs were taken as equal and independent, so rounding and plan are "
            "blind to what the network does, and predicted errors are relative errors of weights"
        )
    if cache.problem:
        yield cache.problem


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
