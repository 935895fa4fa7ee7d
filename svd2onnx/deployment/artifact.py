"""What compress-export wrote, read back: a graph, its weights, report and plan, which belong together."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from svd2onnx.graph.signature import Signature, read_signature
from svd2onnx.reporting.report import CompressionReport, file_digest, read_report
from svd2onnx.values.errors import PlanError, ReportError, one_line
from svd2onnx.values.schema import CompressionPlan
from svd2onnx_runtime import GraphError
from svd2onnx_runtime.external import external_files

_SEPARATOR = re.compile(r"[/\\]")


@dataclass(frozen=True)
class Artifact:
    """A graph that is the one that its report tells of.

    ``data`` is the file beside it that holds its weights, if they are not in it, and ``plan`` the text of its
    plan, if that is there. ``report`` names no folder of the machine that it was made on.
    """

    graph: Path
    data: Path | None
    signature: Signature
    report: CompressionReport
    plan: str | None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.graph, *([self.data] if self.data else []))


def read_artifact(graph: Path) -> Artifact:
    """What ``compress-export -o GRAPH`` wrote.

    Raises:
        GraphError: the graph is none, or its weights are not in one file beside it.
        ReportError: there is no report, or it is that of another graph or of other weights.
        PlanError: the plan is none, or that of another graph.
    """
    signature = read_signature(graph)
    report = _report_of(graph, signature)
    if report.sha256 != file_digest(graph):
        raise _stale(graph, graph)
    data = _data_of(graph)
    if data and report.data_sha256 != file_digest(data):
        raise _stale(graph, data)
    return Artifact(graph, data, signature, without_paths(report, graph.name), _plan_of(graph, report))


def without_paths(report: CompressionReport, output: str) -> CompressionReport:
    """``report`` of the file ``output``, with names in place of paths.

    Warnings that hold a path are left out: they are of the machine, such as of its cache. So is the command
    line.
    """
    settings = {key: _name(own) if isinstance(own, str) else own for key, own in report.settings.items()}
    warnings = tuple(warning for warning in report.warnings if not _SEPARATOR.search(warning))
    return replace(
        report,
        source=_name(report.source),
        output=output,
        settings=settings,
        warnings=warnings,
        command=None,
    )


def report_path(graph: Path) -> Path:
    """Where compress-export writes the report of ``graph``."""
    return Path(f"{graph}.report.json")


def plan_path(graph: Path) -> Path:
    """Where compress-export writes the plan of ``graph``."""
    return Path(f"{graph}.plan.json")


def _report_of(graph: Path, signature: Signature) -> CompressionReport:
    path = report_path(graph)
    if path.exists():
        return read_report(path)
    if signature.made_by is None:
        raise ReportError(
            f"{graph} was not made by svd2onnx: give a file that compress-export wrote, "
            f"with {path.name} beside it"
        )
    raise ReportError(
        f"{graph} has no {path.name} beside it, which says what it is: put it there, "
        "or run compress-export again"
    )


def _data_of(graph: Path) -> Path | None:
    files = external_files(graph)
    if len(files) > 1 or any(file.parent != graph.parent for file in files):
        names = ", ".join(str(file.relative_to(graph.parent)) for file in files)
        raise GraphError(
            f"expected the weights of {graph} in one file beside it, found {names}: export it again"
        )
    if files and not files[0].is_file():
        raise GraphError(
            f"the weights of {graph} are in {files[0].name}, which is not beside it: put it there"
        )
    return files[0] if files else None


def _plan_of(graph: Path, report: CompressionReport) -> str | None:
    path = plan_path(graph)
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        plan = CompressionPlan.from_json(json.loads(text))
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
    except (PlanError, ValueError, RecursionError) as error:
        raise PlanError(f"{path} is no plan: {one_line(error)}") from error
    stored = {layer.name: layer.form for layer in report.layers if layer.form != "float"}
    if stored != {name: str(form) for name, form in plan.forms.items()}:
        raise PlanError(f"{path} is not the plan of {graph}: remove it, or run compress-export with it")
    return text


def _stale(graph: Path, changed: Path) -> ReportError:
    return ReportError(
        f"{report_path(graph)} is the report of another {changed.name} (its sha256 differs): "
        "put those of one run together, or run compress-export again"
    )


def _name(value: Any) -> str:
    # Of a path as either system writes it.
    return PureWindowsPath(value).name if _SEPARATOR.search(value) else value
