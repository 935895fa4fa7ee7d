"""Round a matrix to blocks of signed integers, with a search for each block's scale.

A block b of a row becomes  b ~ s q,  q integer in [-2^(bits-1), 2^(bits-1) - 1].  The largest
magnitude need not be representable: a smaller scale clips it and serves the others better, so the
scale is searched for. Both signs of it are tried, because the range has one more negative code.

Source: the clipping search is that of the MSE range estimators, Nagel et al., "A White Paper on Neural
Network Quantization" (arXiv 2106.08295), section 3.1, with errors weighted by each input's second
moment, as GPTQ's implementations do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from svd2onnx.values.scales import ScaleGrid
from svd2onnx.values.schema import QuantizedTensor, QuantSpec

_TOGETHER = 1 << 16
"""Weights whose scales are searched for at a time."""
_SHRINKS = {
    8: (1.03, 1.015, 1.0, 0.985, 0.97, 0.95),  # above 1, lest rounding the scale clips
    4: tuple(1.0 - 0.05 * i for i in range(10)),
    2: tuple(1.0 - 0.06 * i for i in range(13)),
}


def quantize(weight: Tensor, spec: QuantSpec, importance: Tensor | None = None) -> QuantizedTensor:
    """Round ``weight`` to the nearest codes of ``spec``.

    Args:
        weight: float [rows, columns]; blocks run along the columns.
        spec: bits and block size.
        importance: non-negative [columns], the weight of each column's squared error in the search for
            the scales (the inputs' second moments); None for equal ones.

    Returns:
        Codes int8 [rows, columns] and scale [rows, blocks].
    """
    steps, grid = search_steps(weight, spec, importance)
    return QuantizedTensor(encode(weight, steps, spec), grid.store(steps), spec, grid.unit)


def encode(weight: Tensor, steps: Tensor, spec: QuantSpec) -> Tensor:
    """Nearest codes int8 [rows, columns] of ``weight`` under fixed steps [rows, blocks]."""
    low, high = spec.code_range
    blocks = _to_blocks(weight.float(), spec.block_size)
    codes = torch.round(blocks / steps.unsqueeze(-1)).clamp_(low, high)
    return codes.flatten(1)[:, : weight.shape[1]].to(torch.int8)


def search_steps(
    weight: Tensor, spec: QuantSpec, importance: Tensor | None = None
) -> tuple[Tensor, ScaleGrid]:
    """The step of each block that leaves the least weighted squared error, and the grid they lie on.

    The steps are float32 [rows, blocks] and none is 0: an all-zero block has exact zeros under any.
    """
    _, high = spec.code_range
    blocks = _to_blocks(weight.float(), spec.block_size)
    if importance is None:
        cost = blocks.new_ones(1, *blocks.shape[1:])
    else:
        cost = _to_blocks(importance.float().reshape(1, -1), spec.block_size)
    limit = blocks.abs().amax(dim=-1)
    grid = ScaleGrid.covering(limit / high)
    # Some rows at a time stay in the processor's cache, which is several times quicker.
    together = max(1, _TOGETHER // max(1, weight.shape[1]))
    rows = [slice(start, start + together) for start in range(0, len(blocks), together)]
    best = [_searched(blocks[some], cost, grid.of(some), spec) for some in rows]
    return torch.cat(best) if best else limit, grid


def _searched(blocks: Tensor, cost: Tensor, grid: ScaleGrid, spec: QuantSpec) -> Tensor:
    """The best steps [rows, blocks] on ``grid``."""
    low, high = spec.code_range
    limit = blocks.abs().amax(dim=-1)
    extreme = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    # The side with one more code belongs to the block's extreme weight; the other sign is tried too.
    outward = -torch.sign(extreme)
    # Where squared errors overflow float32, none is better than another: keep the whole range.
    best = grid.round(outward * limit / -low)
    best_error = torch.full_like(limit, torch.inf)
    for shrink in _SHRINKS[spec.bits]:
        for candidate in (outward * limit / -low, -outward * limit / high):
            steps = grid.round(candidate * shrink)
            wide = steps.unsqueeze(-1)
            rounded = torch.round(blocks / wide).clamp_(low, high).mul_(wide)
            error = rounded.sub_(blocks).square_().mul_(cost).sum(dim=-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, steps, best)
    return best


def _to_blocks(matrix: Tensor, block_size: int) -> Tensor:
    """[rows, columns] -> [rows, blocks, block_size], the last block padded with zeros."""
    padded = functional.pad(matrix, (0, -matrix.shape[1] % block_size))
    return padded.reshape(matrix.shape[0], -1, block_size)
