"""What a network is judged by, as people write it: "kl", or "boxes=mse" for one of several outputs."""

from __future__ import annotations

from dataclasses import dataclass

from svd2onnx.values.choices import OBJECTIVES
from svd2onnx.values.errors import PlanError


@dataclass(frozen=True)
class Objective:
    """``kind`` is "cosine", "kl" or "mse"; ``output`` is None for the first of floating-point numbers."""

    kind: str
    output: str | None = None


def parse_objective(text: str) -> Objective:
    """The objective in ``text``, which is KIND or OUTPUT=KIND; a name may hold "=" itself.

    Raises:
        PlanError: it is neither.
    """
    output, separator, kind = str(text).rpartition("=")
    if kind not in OBJECTIVES or (separator and not output):
        raise PlanError(
            f"the objective must be one of {OBJECTIVES}, not {text!r}; with the name of an output before it, "
            "as in boxes=mse, it is of that output"
        )
    return Objective(kind, output if separator else None)
