"""The model card of a file: its report as Markdown, with the header that the Hugging Face hub reads.

Whatever comes from the report or the graph is escaped, and stays on its line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from svd2onnx.deployment.artifact import Artifact
from svd2onnx.reporting.output_lines import output_lines
from svd2onnx.reporting.templating import templates
from svd2onnx.reporting.wording import counted_forms, number, size
from svd2onnx.values.errors import ReportError

ARTIFACT_TYPE = "application/vnd.svd2onnx.model.v1"
"""Of a folder in an OCI registry."""


def card(artifact: Artifact, file: str, media_types: Mapping[str, str] | None = None) -> str:
    """The card of ``artifact``, whose graph has the name ``file`` where the card lies.

    ``media_types`` of the files beside it are for the command that sends them to an OCI registry.

    Raises:
        ReportError: a number in the report is none that a run could have measured.
    """
    environment = templates("svd2onnx.deployment")
    environment.filters |= {"size": size, "number": number, "plain": _plain, "code": _code}
    report = artifact.report
    try:
        text = environment.get_template("card.md").render(
            report=report,
            signature=artifact.signature,
            file=file,
            data=artifact.data.name if artifact.data else None,
            outputs=output_lines(report),
            forms=counted_forms(report.layers),
            operator=report.settings.get("operator"),
            threads=report.settings.get("threads") or "all",
            int8=sum("int8 activations" in layer.form for layer in report.layers),
            settings=_chosen(report.settings),
            media_types=[f"{shlex.quote(name)}:{media}" for name, media in (media_types or {}).items()],
            artifact_type=ARTIFACT_TYPE,
        )
    except (ArithmeticError, ValueError) as error:
        raise ReportError(f"the report of {report.output} holds impossible numbers: {error}") from error
    return f"{text.rstrip()}\n"


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: own for name, own in settings.items() if own not in (None, [], (), False)}


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|&~!])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', '').split())}`".replace("|", "\\|")
