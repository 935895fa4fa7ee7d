"""The range of an activation that is rounded to 8 bits: one step and one zero point for the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 255
"""Between the least code and the largest, of uint8."""
_TINY = 1e-30


@dataclass(frozen=True)
class ActivationRange:
    """Values from ``low`` to ``high``; what lies beyond is cut off.

    Zero is always among them, and has a code of its own: what is padded with zeros stays exact.
    """

    low: float
    high: float

    @property
    def scale(self) -> float:
        """The step between two codes, as float32 has it."""
        width = max(self.high, 0.0) - min(self.low, 0.0)
        return float(np.float32(max(width / STEPS, _TINY)))

    @property
    def zero(self) -> int:
        """The code of zero, 0 to 255."""
        return min(STEPS, max(0, round(-min(self.low, 0.0) / self.scale)))


@dataclass(frozen=True)
class Int8Inputs:
    """What a convolution in int8 takes: the range of its inputs, and that between the two of a pair."""

    x: ActivationRange
    inner: ActivationRange | None = None
