"""Quantized low-rank pairs and corrections: round one factor, refit the other to it, and again.

    W ~ L R:   R rounded for inputs of moment H;
    L = W H R^T (R H R^T)^{-1} refitted to the rounded R, and rounded for inputs of moment R H R^T;
    R = (L^T G L)^{-1} L^T G W refitted to the rounded L; and once more.

A correction stores W ~ Q + L R, Q dense at few bits: Q rounds W - L R, and L R is the best pair for W - Q,
in turns.

Source: LQER and CALDERA (Saha et al., arXiv 2405.18886) for quantized factors beside a quantized matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svd2onnx.lowrank import Factorization, Weighting
from svd2onnx.moments import damp, times
from svd2onnx.rounding import Curvature, round_second_order
from svd2onnx.schema import LayerForm, QuantizedTensor, QuantSpec

_TURNS = 2
_DAMPING = 1e-4
_SIDE_DAMPING = 0.01


def quantized_pair(
    weight: Tensor, factors: Factorization, spec: QuantSpec, curvature: Curvature
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """(left, right) at ``spec`` for the rank of ``factors``, which are where the search begins."""
    inputs = curvature.inputs
    side = torch.eye(len(weight), device=weight.device) if curvature.outputs is None else curvature.outputs
    right_goal = factors.right
    pair: tuple[QuantizedTensor, QuantizedTensor] | None = None
    weighted = times(weight.double(), inputs)
    for _ in range(_TURNS):
        if pair is not None:
            left = pair[0].dequantize()
            right_goal = _solve(left.T @ side @ left, left.T @ side @ weight)
        (right,) = round_second_order(right_goal, [spec], curvature, sweeps=0)
        rounded = right.dequantize().double()
        moment = times(rounded, inputs) @ rounded.T
        left_goal = _solve(moment, rounded @ weighted.T).T
        (left_rounded,) = round_second_order(left_goal, [spec], Curvature(damp(moment, _SIDE_DAMPING)))
        pair = left_rounded, right
    assert pair is not None
    return pair


def quantized_correction(
    weight: Tensor, form: LayerForm, curvature: Curvature, weighting: Weighting
) -> tuple[QuantizedTensor, QuantizedTensor, QuantizedTensor]:
    """(dense, left, right) of a dense term with a low-rank correction: the best of the turns."""
    assert form.dense is not None
    assert form.factors is not None
    best: tuple[QuantizedTensor, QuantizedTensor, QuantizedTensor] | None = None
    least, product = float("inf"), torch.zeros_like(weight)
    for _ in range(_TURNS):
        # The pair answers for what the outputs' side asks, so this needs no descent.
        (dense,) = round_second_order(weight - product, [form.dense], curvature, sweeps=0)
        rest = weight - dense.dequantize()
        factors = weighting.factorize(rest, form.rank)
        left, right = quantized_pair(rest, factors, form.factors, curvature)
        product = left.dequantize() @ right.dequantize()
        loss = _loss(rest - product, curvature)
        if loss < least:
            best, least = (dense, left, right), loss
    assert best is not None
    return best


def _loss(change: Tensor, curvature: Curvature) -> float:
    """tr(G D H D^T)."""
    sided = change if curvature.outputs is None else curvature.outputs @ change
    return float((sided.double() * times(change.double(), curvature.inputs)).sum())


def _solve(moment: Tensor, target: Tensor) -> Tensor:
    """moment^{-1} target, float32; the moment may be singular where factors rounded to zero."""
    solution: Tensor = torch.linalg.solve(damp(moment.double(), _DAMPING), target.double())
    return solution.float()
