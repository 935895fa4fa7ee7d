"""Goals as people write them: sizes, latencies and fidelities."""

from __future__ import annotations

import math
import re

from svd2onnx.values.errors import PlanError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_LEAST_BARE = 1000
"""Numbers below it are no bytes of a file: a unit was forgotten."""


def parse_size(text: str) -> tuple[float, bool]:
    """A size such as "0.15x" or "15%" (of the float32 file), "40MB" or "12345" (bytes).

    Returns:
        The share and True, or the bytes and False.

    Raises:
        PlanError: the text is no size, or a share that leaves nothing to compress.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(x|%|[kmg]?b)?", str(text).strip(), re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < math.inf:
        raise PlanError(
            f"a size is a share such as 0.15x or 15%, or bytes such as 40MB, not {text!r}: "
            "give --target-size one of these"
        )
    number, unit = float(match[1]), (match[2] or "").upper()
    if not unit and number < _LEAST_BARE:
        meant = f"{match[1]}x" if number <= 1 else f"{match[1]}% or {match[1]}MB"
        raise PlanError(f"--target-size {text} has no unit: did you mean {meant}?")
    if unit not in ("X", "%"):
        return number * _UNITS[unit], False
    share = number / 100 if unit == "%" else number
    if share >= 1:
        raise PlanError(
            f"--target-size {text} is the float32 file's own size or more, so nothing would be compressed: "
            "give less than 1x, such as 0.15x"
        )
    return share, True


def parse_latency(text: str) -> tuple[float, bool]:
    """A latency such as "0.5x" (of the float32 graph) or "12ms".

    Returns:
        The share and True, or the milliseconds and False.

    Raises:
        PlanError: the text is no latency.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(x|%|ms)?", str(text).strip(), re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < math.inf:
        raise PlanError(
            f"a latency is a share of float32's such as 0.5x, or a time such as 12ms, not {text!r}: "
            "give --target-latency one of these"
        )
    number, unit = float(match[1]), (match[2] or "").lower()
    if not unit:
        meant = f"{match[1]}x" if number <= 1 else f"{match[1]}ms"
        raise PlanError(f"--target-latency {text} has no unit: did you mean {meant}?")
    return (number, False) if unit == "ms" else (number / 100 if unit == "%" else number, True)


def check_fidelity(fidelity: float) -> None:
    """Raise a PlanError for a fidelity that no file can be asked for."""
    if not 0 < fidelity < 1:
        raise PlanError(f"a fidelity lies between 0 and 1 (1 is a perfect copy), not {fidelity:g}")
