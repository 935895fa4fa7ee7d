"""What each output lost, in words: for the terminal, the page and the card."""

from __future__ import annotations

from dataclasses import dataclass

from svd2onnx.reporting.report import CompressionReport
from svd2onnx_runtime import OutputFidelity


@dataclass(frozen=True)
class OutputLine:
    """One output: its name, its fidelities in a default session and as written, what it was measured by.

    ``note`` tells of its masked values; it is empty where there are none.
    """

    name: str
    deployed: float
    strict: float | None
    objective: str
    note: str


def output_lines(report: CompressionReport) -> list[OutputLine]:
    """A line for each output; none where a single one, without masked values, has all that is to be said."""
    strict = {own.name: own.fidelity for own in report.strict_outputs}
    lines = [
        OutputLine(own.name, own.fidelity, strict.get(own.name), own.objective, masked_note(own))
        for own in report.deployed.outputs
    ]
    return lines if len(lines) > 1 or any(line.note for line in lines) else []


def masked_note(output: OutputFidelity) -> str:
    """How much of it is masked, by which values; empty where nothing is."""
    if not output.masked:
        return ""
    shown = ", ".join(output.masks[:_SHOWN]) + (", ..." if len(output.masks) > _SHOWN else "")
    return f"{_percent(output.masked)} of its values are masked ({shown}) and left out"


_SHOWN = 3


def _percent(share: float) -> str:
    return f"{share:.0%}" if 0.005 <= share < 0.995 else f"{share:.2%}"
