"""Masked values of an output: those that a network sets to say "not this one", and does not compute.

A value of the float reference is masked if it is

    infinite, or
    of magnitude 1e4 or more, and
        equal, to the last bit, to another value of the same output of the batch, or
        a constant as masks use: the largest number of a float type, or a power of ten; either sign.

A masked value is left out of the error where the other network's output holds the same. It would add nothing
to the difference there, only to the size that the difference is measured by: so leaving it out never makes a
fidelity look better, and a value that merely happens to be large and repeated hides no error. Where the other
output differs, the value counts as any other; only an infinite one has no difference to count, see
``svd2onnx_runtime.objectives``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

LARGE = 1e4
"""The least magnitude of a masked value."""
_STANDS_FOR_INFINITY = 1e30
"""From here on float16 files hold another large number in its place."""
_BFLOAT16_MAX = 3.3895313892515355e38
_LARGEST = (
    float(np.finfo(np.float16).max),
    _BFLOAT16_MAX,
    float(np.finfo(np.float32).max),
    float(np.finfo(np.float64).max),
)


def mask_values(large: Array) -> Array:
    """The values of masks among ``large``, [n], which holds those of an output that are LARGE or more."""
    values, counts = np.unique(large[~np.isnan(large)], return_counts=True)
    size = np.abs(values.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        powers = 10.0 ** np.round(np.log10(size))
        usual = np.isclose(size[:, None], _LARGEST, rtol=1e-6, atol=0).any(axis=1)
        usual |= np.isclose(size, powers, rtol=1e-6, atol=0) | np.isinf(size)
    masks: Array = values[usual | (counts > 1)]
    return masks


def masked(reference: Array) -> Array | None:
    """Which values of ``reference`` are masked, as booleans of its shape; None where none is."""
    if not np.issubdtype(reference.dtype, np.floating):
        return None
    large = np.abs(reference) >= LARGE
    if not large.any():
        return None
    values = mask_values(reference[large])
    return np.asarray(np.isin(reference, values)) if values.size else None


def same_masked(reference: Array, output: Array) -> Array | None:
    """Which values are masked in ``reference`` and the same in ``output``, of one shape; None where none is.

    In a file of float16, another large number may stand for one that is as good as infinite.
    """
    found = masked(reference)
    if found is None:
        return None
    stand_in = np.abs(reference) > _STANDS_FOR_INFINITY
    stand_in = stand_in & (np.sign(reference) == np.sign(output)) & (np.abs(output) >= LARGE)
    same = np.asarray(found & ((output == reference) | stand_in))
    return same if same.any() else None
