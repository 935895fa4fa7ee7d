"""What was done and what came of it: predicted and measured, per layer and whole; JSON beside the file."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from svd2onnx.values.errors import ReportError, one_line
from svd2onnx_runtime import Certificate, EvaluationResult, OutputFidelity

FORMAT = "svd2onnx-report/1"
_LARGEST = 1 << 26
"""Bytes of a file that is read as a report; one of a thousand layers has half a million."""


@dataclass(frozen=True)
class LayerReport:
    """One layer: its form, its bytes in float32 and as stored (all copies), and what needs saying.

    ``rank`` is that of its low-rank pair, 0 where nothing but the bias is left, None where there is no pair.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    form: str
    float_bytes: int
    stored_bytes: int
    note: str | None = None
    predicted_error: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Choice:
    """The plan against the best uniform quantization of no more bytes (or the smallest), of ``uniform_form``.

    ``planned_error`` and ``uniform_error`` are measured on held-out calibration data; the lower one is
    shipped, if both fit. ``gauge`` is the measured over the summed predicted error of the uniform network
    on the evaluation data: what the prediction does not know, such as how far these are from the
    calibration data. ``predicted_error`` of the report is the plan's sum times it.
    """

    planned_error: float
    uniform_error: float
    uniform_form: str
    uniform_fits: bool
    gauge: float

    @property
    def uniform_wins(self) -> bool:
        return self.uniform_fits and self.uniform_error < self.planned_error


@dataclass(frozen=True)
class Speed:
    """Latency over that of the float32 graph: planned from the layers' times, measured, and asked for."""

    predicted: float
    measured: float
    asked: float


@dataclass(frozen=True)
class LatencyReport:
    """Median latency of one batch, in ms, and its ratio to the float32 graph (paired, same process).

    Where ``past`` is not 0, of one token after so many.
    """

    batch: int
    median_ms: float
    reference_ms: float
    ratio: float
    past: int = 0


@dataclass(frozen=True)
class Retraining:
    """Mean errors on recovery batches that were held out, before and after ``steps`` of retraining.

    They are equal where no state on the way was better: then the file is as it was before.
    """

    steps: int
    before: float
    after: float

    @property
    def gained(self) -> bool:
        return self.after < self.before


@dataclass(frozen=True)
class SizePoint:
    """About how large the file of another plan is, and its error, predicted as that of the report is.

    ``form`` is that of a uniform quantization, None for a plan of the planner's.
    """

    file_bytes: int
    predicted_error: float
    form: str | None = None


@dataclass(frozen=True)
class CompressionReport:
    """The whole run. ``strict_*`` is the graph as written; ``deployed`` is a default session.

    ``predicted_error`` is what the plan was chosen by; compare it with ``strict_error``. Both are before
    retraining, if there was any, for the prediction. ``curve`` is what the planner expected of other sizes,
    regardless of time; it is empty where nothing was planned. ``machine`` is what the latency is of;
    ``sha256`` is that of the file, ``data_sha256`` of the weights beside it, if they are not in it.
    ``created`` is when the run ended (ISO 8601, UTC) and ``command`` the command line that started it: two
    runs that write the same file may differ in both. A run from Python has no command line.
    ``strict_outputs`` and those of ``deployed`` are what each output lost. ``measured_on`` says what samples
    both fidelities are of, such as "random inputs".
    """

    source: str
    output: str
    method: str
    settings: dict[str, Any]
    float_bytes: int
    file_bytes: int
    predicted_error: float | None
    choice: Choice | None
    speed: Speed | None
    strict_relative_error: float
    strict_fidelity: float
    strict_error: float
    deployed: EvaluationResult
    latency: tuple[LatencyReport, ...]
    certificate: Certificate
    layers: tuple[LayerReport, ...]
    sha256: str
    seconds: float
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    curve: tuple[SizePoint, ...] = ()
    retraining: Retraining | None = None
    machine: str | None = None
    data_sha256: str | None = None
    created: str | None = None
    command: str | None = None
    strict_outputs: tuple[OutputFidelity, ...] = ()
    measured_on: str = "samples"

    @property
    def kept(self) -> float:
        """The file's bytes as a fraction of the float32 ONNX file's."""
        return self.file_bytes / self.float_bytes

    def to_json(self) -> str:
        record = asdict(self) | {"kept": self.kept, "removed": 1 - self.kept}
        return json.dumps({"format": FORMAT, **record}, indent=2, default=str) + "\n"


def read_report(path: Path) -> CompressionReport:
    """The report in the JSON file at ``path``, which ``to_json`` made.

    Raises:
        ReportError: there is no such file, or it is no report.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        record = json.loads(content)
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        if found != FORMAT:
            raise ValueError(f'expected a JSON object with "format": "{FORMAT}", found {found!r}')
        return msgspec.convert(record, CompressionReport)
    except OSError as error:
        raise ReportError(f"cannot read the report {path}: {error.strerror}") from error
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ReportError(f"{path} is no report of compress-export: {one_line(error)}") from error


def tool_versions() -> dict[str, str]:
    """What the result depends on."""
    names = ("svd2onnx", "torch", "onnx-ir", "onnxscript", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def file_digest(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
