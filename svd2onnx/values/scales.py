"""How scales are stored: one byte each, in units of a power of two.

    step = unit * scale,   scale integer in [-127, 127],   unit = 2^e, one for a tensor or for each row

A scale of float16 costs as much as one more halving of the blocks does, and blocks of half the size lower
the error by some 15%, where the coarser scale costs 1%. The unit is a power of two, so that the step is
exact in float32, and so is what onnxruntime folds of it when it loads the file.

Source: the double quantization of QLoRA (Dettmers et al., arXiv 2305.14314), with an exponent only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127
_FINE_ENOUGH = 24
"""The median step must be at least so many units, which keeps its rounding error to 2%."""
_EXPONENTS = (-24, 15)
"""Powers of two that float16 holds, in which the units of rows are stored."""
_FLOAT16_NORMAL = (6.104e-5, 65504.0)


@dataclass(frozen=True)
class ScaleGrid:
    """The steps that can be stored.

    Multiples of ``unit``, float32 [1, 1] or float16 [rows, 1], as int8; or, where ``unit`` is None, floats
    of ``dtype``. One unit is float32, because the Cast of a float16 would take more bytes than it saves.
    """

    dtype: torch.dtype
    unit: Tensor | None = None

    @classmethod
    def covering(cls, largest: Tensor) -> ScaleGrid:
        """The smallest grid for blocks whose steps are at most ``largest`` [rows, blocks] in magnitude.

        Blocks of zeros have no say.
        """
        used = largest[largest > 0]
        if used.numel() == 0:
            return cls(torch.int8, largest.new_ones(1, 1))
        for reach in (used.max().reshape(1, 1), largest.amax(dim=1, keepdim=True)):
            # In float64, so that every device finds the same exponent, and exactly a power of two.
            exponent = torch.ceil(torch.log2((reach / LARGEST).double()))
            exponent = torch.where(reach > 0, exponent, torch.zeros_like(exponent))
            low, high = _EXPONENTS
            unit = torch.exp2(exponent.clamp(low, high)).float()
            fits = bool((exponent >= low).all() and (exponent <= high).all())
            if fits and (largest / unit)[largest > 0].median() >= _FINE_ENOUGH:
                return cls(torch.int8, unit if unit.numel() == 1 else unit.half())
        smallest, limit = _FLOAT16_NORMAL
        # A quarter of the median must still be a normal number: the search shrinks steps.
        fits = bool(used.max() < limit and used.median() * 0.25 > smallest)
        return cls(torch.float16 if fits else torch.float32)

    def of(self, rows: slice) -> ScaleGrid:
        """The grid of some rows."""
        if self.unit is None or len(self.unit) == 1:
            return self
        return ScaleGrid(self.dtype, self.unit[rows])

    def store(self, steps: Tensor) -> Tensor:
        """``steps`` [rows, blocks] as scales of ``dtype``, rounded to nearest."""
        if self.unit is None:
            return steps.to(self.dtype)
        return torch.round(steps / self.unit.float()).clamp_(-LARGEST, LARGEST).to(torch.int8)

    def round(self, steps: Tensor) -> Tensor:
        """The nearest steps on the grid but 0, float32 [rows, blocks]."""
        stored = self.store(steps)
        stored = torch.where(stored == 0, torch.ones_like(stored), stored)
        return widen(stored, self.unit)


def widen(scale: Tensor, unit: Tensor | None) -> Tensor:
    """Stored scales as float32 factors [rows, blocks]."""
    return scale.float() if unit is None else scale.float() * unit.float()
