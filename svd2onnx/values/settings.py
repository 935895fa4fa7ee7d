"""What the user asks for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import METHODS, QuantSpec

ACTIVATIONS = ("auto", "float", "int8")
OPERATORS = ("dequantize", "folded", "matmulnbits")
DTYPES = ("float32", "float16")
DEVICES = ("auto", "cpu", "cuda")
DEFAULT_BLOCKS = {8: 128, 4: 32, 2: 32}
"""Larger blocks are smaller and faster; fewer bits need smaller ones to stay accurate."""
DEFAULT_TARGET = "0.15x"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class FileFormat:
    """What a file holds its quantized MatMuls as, and computes in; see ``svd2onnx.graph.file_formats``."""

    operator: str = "dequantize"
    dtype: str = "float32"

    @property
    def shares_weights(self) -> bool:
        """Whether MatMuls of one weight share its codes; DequantizeLinear fuses only where they do not."""
        return self.operator != "dequantize"


@dataclass(frozen=True)
class Settings:
    """See ``svd2onnx compress-export --help``.

    Raises:
        PlanError: the method is unknown, or settings contradict one another.
    """

    method: str = "auto"
    target_size: str | None = None
    min_fidelity: float | None = None
    target_latency: str | None = None
    latency_table: Path | None = None
    batch: int = 1
    sequence: int = 128
    plan: Path | None = None
    bits: int = 4
    block_size: int | None = None
    epsilon: float = 0.1
    activations: str = "auto"
    operator: str = "dequantize"
    dtype: str = "float32"
    external_data: bool = False
    with_past: bool = False
    recover: int = 0
    only: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    calibration_samples: int = 1024
    weights: Path | None = None
    random_weights: bool = False
    model: Path | None = None
    calibration: Path | None = None
    input_shape: tuple[str, ...] = ()
    objective: str | None = None
    trust_pickle: bool = False
    provider: str = "auto"
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    cache: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanError(f"the method must be one of {METHODS}, not {self.method!r}")
        if self.activations not in ACTIVATIONS:
            raise PlanError(f"activations must be one of {ACTIVATIONS}, not {self.activations!r}")
        if self.operator not in OPERATORS:
            raise PlanError(f"the operator must be one of {OPERATORS}, not {self.operator!r}")
        if self.dtype not in DTYPES:
            raise PlanError(f"the dtype must be one of {DTYPES}, not {self.dtype!r}")
        if self.device not in DEVICES:
            raise PlanError(f"the device must be one of {DEVICES}, not {self.device!r}")
        if self.activations == "int8" and self.file_format != FileFormat():
            raise PlanError(
                "--activations int8 is a form of its own, MatMulInteger on float32 activations: "
                f"leave it out, or --operator {self.operator} and --dtype {self.dtype}"
            )
        if self.target_latency and self.file_format not in (FileFormat(), FileFormat("matmulnbits")):
            raise PlanError(
                "--target-latency plans for fused kernels in float32, not for "
                f"--operator {self.operator} with --dtype {self.dtype}: leave them out, or the target"
            )
        if self.weights is not None and self.random_weights:
            raise PlanError(
                "--weights names trained weights and --random-weights asks for none: give one of them"
            )
        goals = [goal for goal in (self.target_size, self.min_fidelity, self.plan) if goal is not None]
        if len(goals) > 1:
            raise PlanError("--target-size, --min-fidelity and --plan are different goals: give one of them")
        if self.plan is not None and self.target_latency is not None:
            raise PlanError("--plan says all of a plan already: leave out --target-latency")
        if (goals or self.target_latency) and self.method != "auto":
            raise PlanError(
                f"--method {self.method} has a rule of its own: leave it out to give a goal or a plan"
            )

    def choice_of_activations(self, provider: str) -> tuple[str, ...]:
        """What planned layers may compute with: either, where time counts and the provider can do both."""
        if self.activations != "auto":
            return (self.activations,)
        both = self.target_latency and provider == "cpu" and self.file_format == FileFormat()
        return ("float", "int8") if both else ("float",)

    @property
    def sizes(self) -> dict[str, int]:
        """Of the dynamic dimensions of the inputs that latency is planned for."""
        return {"batch": self.batch, "sequence": self.sequence}

    @property
    def file_format(self) -> FileFormat:
        """How the graph is written, where its activations are floats."""
        return FileFormat(self.operator, self.dtype)

    @property
    def spec(self) -> QuantSpec:
        """Of plain quantization and of the article's factors."""
        return QuantSpec(self.bits, self.block_size or DEFAULT_BLOCKS[self.bits])


def target_bytes(text: str, float_bytes: int) -> int:
    """A size such as "0.15x" (of the float32 file), "40MB" or "12345", in bytes.

    Raises:
        PlanError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(x|[kmg]?b)?", text.strip(), re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < math.inf:
        raise PlanError(f"a size is a share such as 0.15x or bytes such as 40MB, not {text!r}")
    number, unit = float(match[1]), (match[2] or "").upper()
    return int(number * (float_bytes if unit == "X" else _UNITS[unit]))
