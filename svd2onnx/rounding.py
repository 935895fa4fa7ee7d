"""Second-order rounding: codes that keep a layer's outputs, not its weights.

For a row w of W with scales s fixed beforehand, GPTQ minimises

    (w - s q) H (w - s q)^T,      H = E[(x - mu)(x - mu)^T] (damped)

over the codes q column by column: each rounding error is spread over the columns not yet rounded, by
the Cholesky factor U of H^-1 (H^-1 = U^T U, U upper triangular):

    e_j = (w_j - s q_j) / U_jj,      w_k -= e_j U_jk   for k > j.

Columns go by falling H_jj (activation order), while the blocks of scales keep their places (static
groups), so that the file's layout is unchanged.

Source: GPTQ (Frantar et al., arXiv 2210.17323), and its implementation's ``act_order`` and ``static_groups``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svd2onnx.quantize import quantize, search_steps
from svd2onnx.schema import QuantizedTensor, QuantSpec

_DAMPING = 0.01
_COLUMNS = 64


def round_second_order(weight: Tensor, spec: QuantSpec, moment: Tensor | None) -> QuantizedTensor:
    """Quantize ``weight`` [rows, columns] for inputs whose second moment is ``moment`` [columns, columns].

    At 8 bits, or without a moment, rounding to nearest is as good and used instead.
    """
    if moment is None or spec.bits == 8:
        return quantize(weight, spec, None if moment is None else moment.diagonal())
    damped = damp(moment, _DAMPING)
    steps, grid = search_steps(weight, spec, damped.diagonal())
    codes = gptq_codes(weight, steps, spec, damped)
    return QuantizedTensor(codes, grid.store(steps), spec, grid.unit)


def damp(moment: Tensor, share: float) -> Tensor:
    """``moment`` plus ``share`` of its mean diagonal on the diagonal: positive definite."""
    mean = moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    return moment + share * mean * torch.eye(len(moment), dtype=moment.dtype)


def gptq_codes(weight: Tensor, steps: Tensor, spec: QuantSpec, moment: Tensor) -> Tensor:
    """Codes int8 [rows, columns] for fixed ``steps`` [rows, blocks]; ``moment`` is positive definite."""
    low, high = spec.code_range
    columns = weight.shape[1]
    order = torch.argsort(moment.diagonal(), descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    # One row of memory per column: the loop below reads and writes whole columns.
    rest = weight.float().T[order].contiguous()
    step = steps.T[order // spec.block_size].contiguous()
    codes = torch.empty_like(rest)
    for start in range(0, columns, _COLUMNS):
        end = min(start + _COLUMNS, columns)
        errors = torch.empty(end - start, weight.shape[0])
        for j in range(start, end):
            code = torch.round(rest[j] / step[j]).clamp_(low, high)
            codes[j] = code
            error = (rest[j] - code * step[j]) / upper[j, j]
            rest[j + 1 : end].addr_(upper[j, j + 1 : end], error, alpha=-1.0)
            errors[j - start] = error
        rest[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1.0)
    result = torch.empty(weight.shape[0], columns, dtype=torch.int8)
    result[:, order] = codes.T.to(torch.int8)
    return result
