"""A report as one HTML file that needs nothing else: no script, no request, no inline style attribute.

What to do with the file is text to copy. The page's own Content-Security-Policy allows the one style sheet in
it, by its hash, and nothing besides. Everything that comes from the report is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from datetime import UTC, datetime
from importlib.resources import files

from markupsafe import Markup

from svd2onnx.reporting.charts import MARK_RADIUS, size_chart
from svd2onnx.reporting.layer_table import LayerTable, layer_table
from svd2onnx.reporting.output_lines import output_lines
from svd2onnx.reporting.report import CompressionReport, LayerReport
from svd2onnx.reporting.templating import templates
from svd2onnx.reporting.terms import TERMS, explained_form
from svd2onnx.reporting.wording import counted_forms, number, size
from svd2onnx.values.errors import ReportError

_CHARTS = {"wide": (860, 380), "narrow": (350, 320)}
"""Width and height in pixels: text keeps its size, so a phone gets a picture of its own."""

_MOST_DIGITS = 8


def render(report: CompressionReport) -> str:
    """The HTML page of ``report``.

    Raises:
        ReportError: a number in it is none that a run could have measured.
    """
    try:
        return _rendered(report)
    except (ArithmeticError, ValueError) as error:
        raise ReportError(f"the report of {report.output} holds impossible numbers: {error}") from error


def _rendered(report: CompressionReport) -> str:
    environment = templates("svd2onnx.reporting", autoescape=True)
    environment.filters |= {
        "size": size,
        "share": _share,
        "bits": _bits,
        "number": number,
        "error": _error,
        "explained": explained_form,
        "fidelity": _fidelity,
        "ms": _ms,
        "quoted": shlex.quote,
        "time": _time,
    }
    style = (files("svd2onnx.reporting") / "templates" / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    charts = {name: size_chart(report, *size) for name, size in _CHARTS.items()}
    return environment.get_template("report.html").render(
        report=report,
        outputs=output_lines(report),
        style=Markup(style),
        style_hash=f"sha256-{digest}",
        charts={name: chart for name, chart in charts.items() if chart},
        forms=counted_forms(report.layers),
        mark_radius=MARK_RADIUS,
        table=layer_table(report.layers),
        terms=TERMS,
        settings={
            name: own
            for name, own in report.settings.items()
            if own not in (None, [], ()) and own is not False
        },
    )


def _share(part: float, whole: float) -> str:
    """Of 100, the width of the bars, for any two numbers."""
    return f"{100 * min(max(part / whole, 0.0), 1.0):.2f}" if whole > 0 and part == part else "0"


def _bits(layers: LayerReport | LayerTable) -> float:
    """Stored bits for each weight."""
    return 32 * layers.stored_bytes / layers.float_bytes if layers.float_bytes else 0.0


def _error(value: float) -> str:
    """To three significant digits: errors differ by powers of ten."""
    return f"{value:.3g}"


def _fidelity(value: float, digits: int) -> str:
    """With so many digits, and more where it would look like 1 and is less."""
    while digits < _MOST_DIGITS and value < 1 and float(number(value, digits)) == 1:
        digits += 1
    return number(value, digits)


def _ms(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _time(moment: str) -> str:
    """A time of ISO 8601 without the letters; whatever else it is, as it is."""
    try:
        return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return moment
