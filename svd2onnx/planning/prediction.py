"""Predict what a change of one layer costs the whole network, without running the network.

For D = W - W~, with x the layer's inputs, mu their mean and g the gradients of a probe at its outputs,

    error(D) = 1/2 E_sample ( sum_t g_t^T D (x_t - mu) )^2
             = 1/2 E_sample <Gamma, D>^2,      Gamma = sum_t g_t (x_t - mu)^T

This is the Gauss-Newton approximation of the objective (see ``probes``), exact for small changes. The mean is
subtracted because the bias is corrected by D mu. Summed over layers it predicts the error of the network,
and so compares dense and low-rank forms, and one layer with another, in one currency.

The samples are those that calibration held out: on the data that a weight was rounded for, its error looks
smaller than it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics, ProbedGammas, ProbedRows

_FEW_ROWS = 8
"""Rows of a sample below which its Gamma, as large as the weight, takes longer to make than to do without."""
_TOGETHER = 1 << 24
"""Elements of Gamma that are held at a time."""


class ErrorPredictor:
    """The predicted errors of changes of one layer, of shape [out, in], or [rows, width] for a table.

    Raises:
        ValueError: the statistics hold no probes.
    """

    def __init__(self, statistics: LayerStatistics) -> None:
        if not statistics.probes:
            raise ValueError(
                "the statistics hold no probes: calibrate for an objective, with batches held out"
            )
        self._statistics = statistics
        self._count = sum(probes.count for probes in statistics.probes)

    def __call__(self, changes: Sequence[Tensor]) -> list[float]:
        """The predicted error of each of ``changes`` = W - W~, in the units of the objective."""
        totals = changes[0].new_zeros(len(changes), dtype=torch.float64)

        @functools.cache
        def flat() -> Tensor:
            return torch.stack([change.flatten() for change in changes])

        one_by_one = self._statistics.mean is None or changes[0].numel() > _TOGETHER
        for probes in self._statistics.probes:
            if isinstance(probes, ProbedGammas):
                totals += _squares(probes.gammas.flatten(1), flat())
            elif one_by_one or len(probes.x) < _FEW_ROWS * len(probes.lengths):
                totals += torch.stack([self._from_rows(probes, change) for change in changes])
            else:
                totals += self._from_gammas(probes, flat())
        return (totals / (2 * self._count)).tolist()

    def _from_gammas(self, probes: ProbedRows, changes: Tensor) -> Tensor:
        """Sums of squares [changes] over the samples; ``changes`` are flat."""
        parts = list(
            zip(
                torch.split(self._centred(probes), list(probes.lengths)), self._gradients(probes), strict=True
            )
        )
        step = max(1, _TOGETHER // changes.shape[1])
        totals = changes.new_zeros(len(changes), dtype=torch.float64)
        for start in range(0, len(parts), step):
            gammas = torch.stack([(g.T @ x).flatten() for x, g in parts[start : start + step]])
            totals += _squares(gammas, changes)
        return totals

    def _from_rows(self, probes: ProbedRows, change: Tensor) -> Tensor:
        """The sum of squares of one change, without Gamma, some rows at a time."""
        is_table = self._statistics.mean is None
        rows = probes.x if is_table else self._centred(probes)
        sums = []
        for x, g in zip(torch.split(rows, 1024), torch.split(probes.g, 1024), strict=True):
            output = change[x] if is_table else x @ change.T
            sums.append((output * g.float()).sum(dim=1))
        samples = torch.stack([part.sum() for part in torch.split(torch.cat(sums), list(probes.lengths))])
        return samples.double().square().sum()

    def _centred(self, probes: ProbedRows) -> Tensor:
        assert self._statistics.mean is not None
        return probes.x.float() - self._statistics.mean.float()

    def _gradients(self, probes: ProbedRows) -> tuple[Tensor, ...]:
        return torch.split(probes.g.float(), list(probes.lengths))


def _squares(gammas: Tensor, changes: Tensor) -> Tensor:
    """Sums of <Gamma, D>^2 [changes] over the samples of ``gammas`` [samples, out * in]; both are flat."""
    totals = changes.new_zeros(len(changes), dtype=torch.float64)
    for some in torch.split(gammas, max(1, _TOGETHER // gammas.shape[1])):
        totals += (some.float() @ changes.T).double().square().sum(dim=0)
    return totals


class RelativeChange:
    """What is left to go by without gradients: |D|^2 / |W|^2, times a ``share``."""

    def __init__(self, weight: Tensor, share: float = 1.0) -> None:
        self._size, self._share = float(weight.double().square().sum()), share

    def __call__(self, changes: Sequence[Tensor]) -> list[float]:
        """The relative squared errors of ``changes`` = W - W~."""
        size = self._size or 1.0
        return [self._share * float(change.double().square().sum()) / size for change in changes]
