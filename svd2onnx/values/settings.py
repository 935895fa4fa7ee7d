"""What the user asks for, checked as far as it can be before a network is loaded; torch is not imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svd2onnx.values.choices import (
    ACTIVATIONS,
    BITS,
    BLOCK_SIZES,
    DEVICES,
    DTYPES,
    METHODS,
    OPERATORS,
)
from svd2onnx.values.errors import PlanError
from svd2onnx.values.objective import parse_objective
from svd2onnx.values.targets import check_fidelity, parse_latency, parse_size

if TYPE_CHECKING:
    from svd2onnx.values.schema import QuantSpec

AnyPath = str | os.PathLike[str]
DEFAULT_BITS = 4
DEFAULT_BLOCKS = {8: 128, 4: 32, 2: 32}
"""Larger blocks are smaller and faster; fewer bits need smaller ones to stay accurate."""
DEFAULT_EPSILON = 0.1
DEFAULT_BATCH = 1
DEFAULT_SEQUENCE = 128
DEFAULT_TARGET = "0.15x"


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

    What belongs to a method or a goal (bits, block_size, epsilon; batch, sequence) is None where that is not
    asked for, and has its default where it is: so the settings of a report are those that played a part.
    A path may be given as text, and a single text where several are taken.

    Raises:
        PlanError: a value is none of those there are, settings contradict one another, or one has no effect.
    """

    method: str = "auto"
    target_size: str | None = None
    min_fidelity: float | None = None
    target_latency: str | None = None
    latency_table: Path | None = None
    batch: int | None = None
    sequence: int | None = None
    plan: Path | None = None
    bits: int | None = None
    block_size: int | None = None
    epsilon: float | None = None
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
    checkpoint_key: str | None = None
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
        self._normalize()
        self._check_choices()
        self._check_ranges()
        self._check_goals()
        self._check_forms()
        self._refuse_idle()
        self._fill_defaults()

    def _normalize(self) -> None:
        for name in ("latency_table", "plan", "weights", "model", "calibration", "cache"):
            if getattr(self, name) is not None:
                self._set(name, Path(getattr(self, name)))
        for name in ("include", "exclude", "input_shape"):
            texts = getattr(self, name)
            self._set(name, (texts,) if isinstance(texts, str) else tuple(texts))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for all but its own making

    def _check_choices(self) -> None:
        for name, value, choices in (
            ("the method", self.method, METHODS),
            ("activations", self.activations, ACTIVATIONS),
            ("the operator", self.operator, OPERATORS),
            ("the dtype", self.dtype, DTYPES),
            ("the device", self.device, DEVICES),
            ("bits", self.bits, (None, *BITS)),
            ("the block size", self.block_size, (None, *BLOCK_SIZES)),
        ):
            if value not in choices:
                known = tuple(choice for choice in choices if choice is not None)
                raise PlanError(f"{name} must be one of {known}, not {value!r}")
        if self.objective is not None:
            parse_objective(self.objective)
        if self.epsilon is not None and not self.epsilon > 0:
            raise PlanError(f"--epsilon bounds a relative error and must be positive, not {self.epsilon:g}")

    def _check_ranges(self) -> None:
        for option, value, least in (
            ("--batch", self.batch, 1),
            ("--sequence", self.sequence, 1),
            ("--threads", self.threads, 1),
            ("--calibration-samples", self.calibration_samples, 0),
            ("--recover", self.recover, 0),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise PlanError(f"{option} must be at least {least}, not {value}")

    def _check_goals(self) -> None:
        goals = [goal for goal in (self.target_size, self.min_fidelity, self.plan) if goal is not None]
        if len(goals) > 1:
            raise PlanError("--target-size, --min-fidelity and --plan are different goals: give one of them")
        if self.plan is not None and self.target_latency is not None:
            raise PlanError("--plan says all of a plan already: leave out --target-latency")
        if (goals or self.target_latency) and self.method != "auto":
            raise PlanError(
                f"--method {self.method} has a rule of its own: leave it out to give a goal or a plan"
            )
        if self.method == "svd" and self.calibration_samples == 0:
            raise PlanError("--method svd measures each layer on calibration data: use --calibration-samples")
        if self.target_size is not None:
            parse_size(self.target_size)
        if self.target_latency is not None:
            parse_latency(self.target_latency)
        if self.min_fidelity is not None:
            check_fidelity(self.min_fidelity)

    def _check_forms(self) -> None:
        if self.activations == "int8" and self.file_format != FileFormat():
            raise PlanError(
                "--activations int8 is a form of its own, with kernels for integers: "
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

    def _refuse_idle(self) -> None:
        """Refuse what would have no effect: whoever gives it expects one."""
        for option, value, methods in (
            ("--bits", self.bits, ("quantize", "svd")),
            ("--block-size", self.block_size, ("quantize", "svd")),
            ("--epsilon", self.epsilon, ("svd",)),
        ):
            if value is not None and self.method not in methods:
                takers = " or ".join(f"--method {method}" for method in methods)
                raise PlanError(
                    f"{option} has no effect with --method {self.method}: add {takers}, or leave {option} out"
                )
        for option, own in (
            ("--batch", self.batch),
            ("--sequence", self.sequence),
            ("--latency-table", self.latency_table),
        ):
            if own is not None and not self.target_latency:
                raise PlanError(
                    f"{option} has no effect without --target-latency: give one, or leave {option} out"
                )

    def _fill_defaults(self) -> None:
        defaults: dict[str, float] = {}
        if self.method != "auto":
            defaults["bits"] = DEFAULT_BITS
            defaults["block_size"] = DEFAULT_BLOCKS[self.bits or DEFAULT_BITS]
        if self.method == "svd":
            defaults["epsilon"] = DEFAULT_EPSILON
        if self.target_latency:
            defaults |= {"batch": DEFAULT_BATCH, "sequence": DEFAULT_SEQUENCE}
        for name, default in defaults.items():
            if getattr(self, name) is None:
                self._set(name, default)

    def choice_of_activations(self, provider: str) -> tuple[str, ...]:
        """What planned layers may compute with: either, where time counts and the provider can do both."""
        if self.activations != "auto":
            return (self.activations,)
        both = self.target_latency and provider == "cpu" and self.file_format == FileFormat()
        return ("float", "int8") if both else ("float",)

    @property
    def sizes(self) -> dict[str, int]:
        """Of the dynamic dimensions of the inputs that latency is planned for; there is a target latency."""
        assert self.batch is not None and self.sequence is not None
        return {"batch": self.batch, "sequence": self.sequence}

    @property
    def file_format(self) -> FileFormat:
        """How the graph is written, where its activations are floats."""
        return FileFormat(self.operator, self.dtype)

    @property
    def spec(self) -> QuantSpec:
        """Of plain quantization and of the article's factors; the method is one of these."""
        from svd2onnx.values.schema import QuantSpec  # here, because it loads torch

        assert self.bits is not None and self.block_size is not None
        return QuantSpec(self.bits, self.block_size)


def target_bytes(text: str, float_bytes: int) -> int:
    """The size ``text``, see ``targets.parse_size``, of a float32 file of ``float_bytes``, in bytes.

    Raises:
        PlanError: the text is no size, or not below ``float_bytes``.
    """
    number, is_share = parse_size(text)
    size = int(number * float_bytes) if is_share else int(number)
    if size >= float_bytes:
        raise PlanError(
            f"--target-size {text} is not below the float32 file, which has {float_bytes:,} bytes, so that "
            "nothing would be compressed: give less, such as 0.15x"
        )
    return size
