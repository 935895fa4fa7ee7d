"""Predict what a change of one layer costs the whole network, without running the network.

For D = W - W~, with x the layer's inputs, mu their mean and g the gradients of a probe at its outputs,

    error(D) = 1/2 E_sample ( sum_t g_t^T D (x_t - mu) )^2 = 1/2 E_sample <Gamma, D>^2,   Gamma = sum_t g_t (x_t - mu)^T

This is the Gauss-Newton approximation of the objective (see ``probes``), exact for small changes. The mean is
subtracted because the bias is corrected by D mu. Summed over layers it predicts the error of the network, and so
compares dense and low-rank forms, and one layer with another, in one currency.

The samples are those that calibration held out: on the data that a weight was rounded for, its error looks
smaller than it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svd2onnx.calibrate import LayerStatistics, ProbedRows

_LARGEST = 1 << 27
"""Elements of Gamma that are kept, over all samples; larger layers are scored from their rows."""


class ErrorPredictor:
    """The predicted error of changes of one layer, of shape [out, in], or [rows, width] for a table."""

    def __init__(self, statistics: LayerStatistics) -> None:
        if not statistics.probes:
            raise ValueError("the statistics hold no probes: calibrate for an objective, with batches held out")
        self._statistics = statistics
        self._count = sum(probes.count for probes in statistics.probes)
        samples = sum(len(probes.lengths) for probes in statistics.probes)
        self._gammas: Tensor | None = None
        if statistics.mean is not None:
            size = statistics.mean.numel() * statistics.probes[0].g.shape[1]
            if size * samples <= _LARGEST:
                self._gammas = torch.cat([self._gamma(probes) for probes in statistics.probes])

    def __call__(self, change: Tensor) -> float:
        """The predicted error of ``change`` = W - W~, in the units of the objective."""
        if self._gammas is not None:
            products = self._gammas @ change.float().flatten()
        else:
            products = torch.cat([self._products(probes, change) for probes in self._statistics.probes])
        return float(products.double().square().sum() / (2 * self._count))

    def _gamma(self, probes: ProbedRows) -> Tensor:
        """[samples, out * in]."""
        parts = zip(self._centred(probes).split(probes.lengths), probes.g.split(probes.lengths), strict=True)
        return torch.stack([(g.float().T @ x).flatten() for x, g in parts])

    def _products(self, probes: ProbedRows, change: Tensor) -> Tensor:
        """[samples], by way of the rows, some at a time."""
        is_table = self._statistics.mean is None
        rows = probes.x if is_table else self._centred(probes)
        sums = []
        for x, g in zip(rows.split(1024), probes.g.split(1024), strict=True):
            output = change[x] if is_table else x @ change.float().T
            sums.append((output * g.float()).sum(dim=1))
        return torch.stack([part.sum() for part in torch.cat(sums).split(probes.lengths)])

    def _centred(self, probes: ProbedRows) -> Tensor:
        assert self._statistics.mean is not None
        return probes.x.float() - self._statistics.mean.float()


class RelativeChange:
    """What is left to go by without data: |D|^2 / |W|^2."""

    def __init__(self, weight: Tensor) -> None:
        self._size = float(weight.double().square().sum())

    def __call__(self, change: Tensor) -> float:
        """The relative squared error of ``change`` = W - W~."""
        return float(change.double().square().sum()) / self._size if self._size else 0.0
