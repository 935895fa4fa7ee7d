"""Second moments of inputs: a matrix [in, in], or its diagonal [in] where the matrix would be too large.

What can be said with either is said here. A diagonal takes inputs as independent.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDEST = 8192
"""Inputs of which the whole matrix is kept: it has 512 MB in float64 there, and 5 GB at VGG19's 25088."""


def diagonal(moment: Tensor) -> Tensor:
    """[in], the mean squares."""
    return moment if moment.ndim == 1 else moment.diagonal()


def times(matrix: Tensor, moment: Tensor) -> Tensor:
    """``matrix`` [.., in] times the moment."""
    return matrix * moment if moment.ndim == 1 else matrix @ moment


def unit_mean(moment: Tensor) -> Tensor:
    """``moment`` over the mean of its diagonal."""
    return moment / diagonal(moment).mean().clamp_min(torch.finfo(moment.dtype).tiny)


def damp(moment: Tensor, share: float) -> Tensor:
    """``moment`` plus ``share`` of its mean diagonal on the diagonal: positive definite."""
    more = share * diagonal(moment).mean().clamp_min(torch.finfo(moment.dtype).tiny)
    return moment + (more if moment.ndim == 1 else torch.diag(more.expand(len(moment))))


def root(moment: Tensor, floor: float) -> Tensor:
    """C with C C^T = moment, lower triangular [in, in], or [in] where the moment is a diagonal.

    ``floor`` of its mean is added to the diagonal, as calibration may leave it singular. Any root weighs a
    change alike, and this one is the cheapest.
    """
    damped = damp(moment, floor)
    if moment.ndim == 1:
        return damped.sqrt()
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:  # rounding left more below zero than that
        values, vectors = torch.linalg.eigh(damped)
        positive = values.clamp_min(floor * values.mean())
        lower = torch.linalg.qr((vectors * positive.sqrt()).T).R.T.contiguous()
    return lower


def over(matrix: Tensor, divisor: Tensor) -> Tensor:
    """``matrix`` [.., in] times the inverse of a ``root``."""
    if divisor.ndim == 1:
        return matrix / divisor
    quotient: Tensor = torch.linalg.solve_triangular(divisor, matrix, upper=False, left=False)
    return quotient


def outer_sum(rows: Tensor, others: Tensor, whole: bool) -> Tensor:
    """rows^T others, [in, in], or its diagonal where it is not to be ``whole``."""
    return rows.T @ others if whole else (rows * others).sum(dim=0)


def add_outer_sum(total: Tensor, rows: Tensor, others: Tensor) -> None:
    """Add ``outer_sum`` to ``total``: where both lie alike, without a matrix in between."""
    if total.ndim == 2 and (total.dtype, total.device) == (rows.dtype, rows.device):
        total.addmm_(rows.T, others)
    else:
        total += outer_sum(rows, others, total.ndim == 2).to(total.device)


def add_square(total: Tensor, row: Tensor, factor: float) -> None:
    """Add ``factor`` row^T row of ``row`` [in], or its diagonal, to ``total``."""
    row = row.to(total)
    if total.ndim == 2:
        total.addr_(row, row, alpha=factor)
    else:
        total += factor * row * row
