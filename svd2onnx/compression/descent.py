"""Two-sided coordinate descent on codes: what GPTQ leaves, seen from the outputs' side as well.

With D = W - s q the change of the weight, the codes q are moved to lower

    tr(G D H D^T),      G = E[g g^T] over output gradients, H over inputs.

Column j wants, for each row i, the change u of D that its own curvature asks for,

    u_i = -(G D H)_ij / (G_ii H_jj),

rounded to whole steps. Rows are coupled by G, so a joint move of a part of the rows is accepted only if

    2 u^T (G D H)_j + H_jj u^T G u < 0,

else its best quarter is tried, else nothing. Every accepted move lowers the objective: it cannot diverge.

Source: the two-sided objective of YAQA (Tseng et al., arXiv 2505.22988), by coordinate descent.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PARTS = 4
_COLUMNS = 64
_STILL = 4
"""A setting in which nothing moves for one of so many parts of the columns is as good as it gets."""


def descend(
    weight: Tensor,
    codes: Tensor,
    steps: Tensor,
    limits: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    *,
    sweeps: int,
) -> Tensor:
    """Better codes for each setting of one weight; all float32.

    Args:
        weight: [out, in].
        codes: integers [settings, out, in].
        steps: of each code, [settings, out, in].
        limits: smallest and largest code of each setting, [settings, 2].
        inputs: H [in, in].
        outputs: G [out, out], with a positive diagonal.
        sweeps: passes over the columns.
    """
    settings, rows, columns = codes.shape
    # Columns first and settings last: a move touches one slab of memory.
    gradient = ((outputs @ (weight - codes * steps)) @ inputs).permute(2, 1, 0).contiguous()
    codes, steps = (tensor.permute(2, 1, 0).contiguous() for tensor in (codes, steps))
    low, high = limits.T.contiguous()
    own, curvature = outputs.diagonal().unsqueeze(1), inputs.diagonal()
    parts = [slice(part, rows, _PARTS) for part in range(min(_PARTS, rows))]
    sides = [outputs[part] for part in parts]
    still = weight.new_zeros(settings)
    for sweep in range(sweeps):
        for start in range(0, columns, _COLUMNS):
            end = min(start + _COLUMNS, columns)
            active = (still * _STILL < columns).float()
            if not bool(active.any()):
                return codes.permute(2, 1, 0).contiguous()
            moved = weight.new_zeros(end - start, rows, settings)
            for j in range(start, end):
                # Moves within the block reach the other columns when it is done, and this one now.
                before = inputs[start:j, j] @ moved[: j - start].flatten(1)
                slope = gradient[j] + before.reshape(rows, settings)
                for part, side in zip(parts, sides, strict=True):
                    step, old = steps[j, part], codes[j, part]
                    wanted = torch.round(old + slope[part] / (own[part] * curvature[j] * step))
                    move = (old - torch.minimum(torch.maximum(wanted, low), high)) * step * active
                    move, effect = _accepted(move, slope[part], curvature[j], own[part], side, part)
                    codes[j, part] = torch.round(old - move / step)
                    moved[j - start] += effect
                    slope += curvature[j] * effect
            # One by one, so that a setting does not depend on those that are rounded with it.
            moves = moved.flatten(0, 1).any(dim=0)
            still = torch.where(moves, torch.zeros_like(still), still + (end - start))
            still[active == 0] = columns
            if bool(moves.any()):
                first = 0 if sweep + 1 < sweeps else end  # no sweep comes back to those before
                gradient[first:].flatten(1).addmm_(inputs[start:end, first:].T, moved.flatten(1))
    return codes.permute(2, 1, 0).contiguous()


def _accepted(
    move: Tensor, slope: Tensor, curvature: Tensor, own: Tensor, side: Tensor, part: slice
) -> tuple[Tensor, Tensor]:
    """The part of ``move`` [rows of the part, settings] that lowers the objective, and G times it."""
    effect = _effect(side, move)
    worse = (move * (2 * slope + curvature * effect[part])).sum(0) >= 0
    if bool((worse & move.any(0)).any()):
        alone = move * (2 * slope + curvature * own * move)
        best = alone <= alone.quantile(0.25, dim=0)
        move = torch.where(worse & ~best, torch.zeros_like(move), move)
        effect = _effect(side, move)
        worse = (move * (2 * slope + curvature * effect[part])).sum(0) >= 0
        move, effect = move * ~worse, effect * ~worse
    return move, effect


def _effect(side: Tensor, move: Tensor) -> Tensor:
    """``side`` [rows of the part, out] transposed times ``move``, of which few entries are not 0.

    What a setting gets does not depend on the others: its rows are added one by one, in their order.
    """
    if move.is_cuda:  # it would add in any order
        return side.T @ move
    moves = move.T
    setting, row = moves.nonzero(as_tuple=True)
    parts = side[row] * moves[setting, row].unsqueeze(1)
    return torch.zeros(len(moves), side.shape[1]).index_add_(0, setting, parts).T
