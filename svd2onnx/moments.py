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


def roots(moment: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root, in the shape of ``moment``.

    The spectrum is floored at ``floor`` of its mean, as calibration may leave it singular.
    """
    if moment.ndim == 1:
        floored = _floored(moment, floor).sqrt()
        return floored, 1 / floored
    values, vectors = torch.linalg.eigh(moment)
    floored = _floored(values, floor).sqrt()
    return (vectors * floored) @ vectors.T, (vectors / floored) @ vectors.T


def outer_sum(rows: Tensor, others: Tensor, whole: bool) -> Tensor:
    """rows^T others, [in, in], or its diagonal where it is not to be ``whole``."""
    return rows.T @ others if whole else (rows * others).sum(dim=0)


def _floored(values: Tensor, floor: float) -> Tensor:
    return values.clamp_min(floor * values.mean().clamp_min(torch.finfo(values.dtype).tiny))
