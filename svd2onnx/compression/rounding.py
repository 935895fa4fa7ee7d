"""Second-order rounding: codes that keep the network's output, not the weights.

For a row w of W under fixed steps s, GPTQ minimises

    (w - s q) H (w - s q)^T

over the codes q column by column: each rounding error is spread over the columns not yet rounded, by
the Cholesky factor U of H^-1 (H^-1 = U^T U, U upper triangular):

    e_j = (w_j - s q_j) / U_jj,      w_k -= e_j U_jk   for k > j.

Columns go by falling H_jj (activation order), while the blocks of scales keep their places (static
groups), so that the file's layout is unchanged. All settings of a layer are rounded in one pass, as
further rows. ``descent`` then refines the codes, with the outputs' side of the error too.

Source: GPTQ (Frantar et al., arXiv 2210.17323), and its implementation's ``act_order`` and ``static_groups``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.moments import WIDEST, damp, diagonal, times, unit_mean
from svd2onnx.compression.descent import descend
from svd2onnx.compression.quantize import quantize, search_steps
from svd2onnx.values.schema import QuantizedTensor, QuantSpec

SWEEPS = 4
_COLUMNS = 64
_DAMPING = 0.05
_SIDE_DAMPING = 1.0
_LEAST = 1e-60
"""Of a mean curvature: where factors are rounded to zero it is as good as none."""


@dataclass(frozen=True)
class Curvature:
    """What rounding minimises: tr(G D H D^T), D the change of a weight [out, in].

    ``inputs`` is H, float64 [in, in], positive definite, or its diagonal [in] (``moments``), with which
    rounding is to nearest. ``outputs`` is G, float32 [out, out], or None for equal and independent outputs.
    """

    inputs: Tensor
    outputs: Tensor | None = None

    @functools.cached_property
    def inputs32(self) -> Tensor:
        """H in float32."""
        return self.inputs.float()

    @functools.cached_property
    def order(self) -> Tensor:
        """The columns by falling curvature; equals in their order, whatever the device."""
        return torch.argsort(diagonal(self.inputs), descending=True, stable=True)

    @functools.cached_property
    def spread(self) -> Tensor:
        """U, float32: how a column's rounding error is spread over those that follow in ``order``."""
        inputs = self.inputs[self.order][:, self.order]
        mean = inputs.diagonal().mean()
        if mean < _LEAST:  # its inverse would be infinite in float32; the size plays no part
            inputs = inputs / mean
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(inputs))
        spread: Tensor = torch.linalg.cholesky(inverse, upper=True)
        return spread.float()

    def loss(self, change: Tensor) -> float:
        """tr(G D H D^T) of the change D [out, in] of a weight."""
        sided = change if self.outputs is None else self.outputs @ change
        return float((sided * times(change, self.inputs32)).sum(dtype=torch.float64))

    @classmethod
    def of(cls, statistics: LayerStatistics, damping: float = _DAMPING) -> Curvature:
        """The inputs' covariance mixed half and half with the gradient moment, where there is one."""
        assert statistics.covariance is not None
        moment = unit_mean(statistics.covariance.double())
        if statistics.gradient_moment is not None:
            moment = moment + unit_mean(statistics.gradient_moment.double())
        outputs = None
        if statistics.output_moment is not None:
            # Rounding by a one-sided rule is the better start; this much keeps the other side from ruling.
            outputs = damp(unit_mean(statistics.output_moment.double()), _SIDE_DAMPING).float()
        return cls(damp(moment, damping), outputs)

    @classmethod
    def identity(cls, width: int) -> Curvature:
        """Of inputs that are equal and independent: what there is without data."""
        equal = torch.ones(width, dtype=torch.float64)
        return cls(torch.diag(equal) if width <= WIDEST else equal)


def round_second_order(
    weight: Tensor, specs: Sequence[QuantSpec], curvature: Curvature | None, sweeps: int = SWEEPS
) -> list[QuantizedTensor]:
    """``weight`` [rows, columns] rounded to each of ``specs``; to nearest without a curvature.

    ``sweeps`` are those of the descent: more are slower and better; with 0 the outputs play no part.
    """
    if curvature is None:
        return [quantize(weight, spec) for spec in specs]
    if curvature.inputs.ndim == 1:
        return [quantize(weight, spec, curvature.inputs) for spec in specs]
    rows, columns = weight.shape
    found = [search_steps(weight, spec, curvature.inputs.diagonal()) for spec in specs]
    steps = torch.stack([widened(s, spec, columns) for (s, _), spec in zip(found, specs, strict=True)])
    limits = torch.tensor([spec.code_range for spec in specs], dtype=torch.float32).to(weight.device)
    codes = gptq_codes(
        weight.float().repeat(len(specs), 1),
        steps.flatten(0, 1),
        limits.repeat_interleave(rows, dim=0),
        curvature,
    ).reshape(steps.shape)
    if sweeps and curvature.outputs is not None:
        # 8 bits leave nothing worth the time.
        coarse = torch.tensor([spec.bits < 8 for spec in specs]).nonzero().flatten().to(weight.device)
        codes[coarse] = descend(
            weight.float(),
            codes[coarse],
            steps[coarse],
            limits[coarse],
            curvature.inputs32,
            curvature.outputs,
            sweeps=sweeps,
        )
    return [
        QuantizedTensor(c.to(torch.int8), grid.store(s), spec, grid.unit)
        for c, (s, grid), spec in zip(codes, found, specs, strict=True)
    ]


def widened(steps: Tensor, spec: QuantSpec, columns: int) -> Tensor:
    """The step of each weight, [rows, columns], from those of the blocks."""
    return steps.repeat_interleave(spec.block_size, dim=1)[:, :columns]


def gptq_codes(weight: Tensor, steps: Tensor, limits: Tensor, curvature: Curvature) -> Tensor:
    """Integer codes, float32 [rows, columns], of ``weight`` under the ``steps`` of its entries.

    ``limits`` [rows, 2] are the smallest and largest code of each row.
    """
    columns = weight.shape[1]
    order, upper = curvature.order, curvature.spread
    low, high = limits.T.contiguous()
    # One row of memory per column: the loop below reads and writes whole columns.
    rest = weight.T[order].contiguous()
    step = steps.T[order].contiguous()
    codes = torch.empty_like(rest)
    for start in range(0, columns, _COLUMNS):
        end = min(start + _COLUMNS, columns)
        errors = rest.new_empty(end - start, weight.shape[0])
        for j in range(start, end):
            code = torch.round(rest[j] / step[j])
            torch.minimum(torch.maximum(code, low, out=code), high, out=codes[j])
            error = torch.addcmul(rest[j], codes[j], step[j], value=-1.0).div_(upper[j, j])
            rest[j + 1 : end].addr_(upper[j, j + 1 : end], error, alpha=-1.0)
            errors[j - start] = error
        rest[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1.0)
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.contiguous()
