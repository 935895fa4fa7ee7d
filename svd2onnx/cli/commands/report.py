"""report: an earlier run as a page to look at."""

from __future__ import annotations

import json
from pathlib import Path

import click
import cloup

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import PATH, command, examples


@command(
    short_help="Make a page of an earlier run's report.",
    epilog=examples(
        "svd2onnx report minilm.onnx.report.json",
        "svd2onnx report minilm.onnx.report.json -o minilm.html",
    ),
)
@click.argument("report_json", metavar="OUT.onnx.report.json", type=PATH)
@cloup.option(
    "-o", "--output", type=PATH, metavar="FILE", help="HTML file to write.  [default: beside the report]"
)
@spoken
def report(report_json: Path, output: Path | None, terminal: Terminal) -> None:
    """Write what compress-export reported as one HTML file, which needs neither network nor scripts."""
    from svd2onnx.compute.atomic_output import atomic_files
    from svd2onnx.reporting.page import render
    from svd2onnx.reporting.report import read_report

    page = render(read_report(report_json))
    output = output or report_json.with_suffix(".html")
    with atomic_files(output) as (draft,):
        draft.write_text(page, encoding="utf-8")
    terminal.answer(json.dumps({"output": str(output)}), str(output))
