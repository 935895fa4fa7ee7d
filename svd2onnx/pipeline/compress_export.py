"""The story of one compression, from a network to a verified ONNX file and its report."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from svd2onnx.calibration.calibrate import without_probes
from svd2onnx.compute.progress import Track, silent
from svd2onnx.latency.latency_model import read_table
from svd2onnx.memo.cache import Cache, open_cache
from svd2onnx.pipeline.as_handed_in import check_as_handed_in
from svd2onnx.pipeline.builder import Builder
from svd2onnx.pipeline.final_report import final_report
from svd2onnx.pipeline.goal_choice import check_goal, choose_goal, resolved_provider
from svd2onnx.pipeline.int8_convolutions import Int8Convolutions
from svd2onnx.pipeline.judged_output import with_judged_output
from svd2onnx.pipeline.plan_search import search_plan
from svd2onnx.pipeline.preparation import prepare
from svd2onnx.pipeline.run_files import RunFiles
from svd2onnx.pipeline.statistics import gather_statistics
from svd2onnx.pipeline.timing import time_layers
from svd2onnx.pipeline.workspace import Workspace, memo_of_run
from svd2onnx.reporting.page import render
from svd2onnx.reporting.report import CompressionReport
from svd2onnx.sources.source import Source
from svd2onnx.values.settings import AnyPath, Settings


def compress_export(
    source: AnyPath | Source,
    output: AnyPath,
    settings: Settings,
    *,
    data: AnyPath | None = None,
    reference: AnyPath | None = None,
    page: AnyPath | None = None,
    command: str | None = None,
    track: Track = silent,
) -> CompressionReport:
    """Compress the network of ``source``, of any kind (see ``svd2onnx.sources``), and write it to ``output``.

    Writes ``OUTPUT.report.json`` and ``OUTPUT.plan.json`` beside it and, where ``reference`` is given, the
    float32 ONNX there, and to ``page`` the report as HTML. The files appear only after the strict check
    passed. The report quotes ``command``, the command line that started the run.

    Raises:
        Svd2OnnxError: a stated failure; nothing is written then.
    """
    started = time.perf_counter()
    output = Path(output)
    table = read_table(settings.latency_table, resolved_provider(settings), settings.threads)
    files = RunFiles.beside(output, settings, reference, page)
    with run_cache(settings, output) as cache, files.drafted(settings) as drafts:
        prepared = prepare(source, settings, data, track)
        prepared.export_float(drafts.float32)
        prepared = with_judged_output(prepared, drafts.float32)
        check_as_handed_in(prepared, drafts.float32)
        memo = memo_of_run(cache, prepared, drafts.float32)
        workspace = Workspace(drafts.graph, drafts.float32, memo, memo.decompose(prepared.device))
        check_goal(prepared, workspace)

        statistics = gather_statistics(prepared, memo)
        latency_model = time_layers(prepared, workspace, table)
        convolutions = Int8Convolutions(prepared, memo)
        goal = choose_goal(prepared, statistics, workspace, latency_model, convolutions)
        builder = Builder(prepared, without_probes(statistics), workspace, convolutions)
        del statistics  # probes take most of the memory
        found = search_plan(goal, builder, latency_model, settings.target_latency)
        del goal
        if settings.recover:
            found = found.retrained(builder, settings.recover)
        builder.let_go()

        report = final_report(found, builder, output=output, started=started)
        problems = (cache.problem,) if cache.problem else ()
        report = replace(report, command=command, warnings=report.warnings + problems)
        drafts.report.write_text(report.to_json())
        drafts.plan.write_text(json.dumps(found.build.plan.to_json(), indent=2) + "\n")
        if drafts.latency_table and latency_model:
            drafts.latency_table.write_text(latency_model.times.table.to_json())
        if drafts.page:
            drafts.page.write_text(render(report), encoding="utf-8")
    return report


def run_cache(settings: Settings, output: Path) -> AbstractContextManager[Cache]:
    """Where parts of this run are kept: for good if that was asked for, else until it is done."""
    kept = settings.resume or settings.cache is not None
    return open_cache(settings.cache or Path(f"{output}.cache"), fresh=not kept, kept=kept)
