"""Quantized low-rank pairs and corrections: round one factor, refit the other to it, and again.

    W ~ L R:   R rounded for inputs of moment H;
    L = W H R^T (R H R^T)^{-1} refitted to the rounded R, and rounded for inputs of moment R H R^T;
    R = (L^T G L)^{-1} L^T G W refitted to the rounded L; and once more.

A correction stores W ~ Q + L R, Q dense at few bits: Q rounds W - L R, and L R is the best pair for W - Q,
in turns.

Source: LQER and CALDERA (Saha et al., arXiv 2405.18886) for quantized factors beside a quantized matrix.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from svd2onnx.calibration.moments import damp, times
from svd2onnx.compression.lowrank import Factorization, Weighting
from svd2onnx.compression.rounding import Curvature, round_second_order
from svd2onnx.values.schema import LayerForm, QuantizedTensor, QuantSpec

_TURNS = 2
_DAMPING = 1e-4
_SIDE_DAMPING = 0.01


@dataclass(frozen=True)
class Target:
    """A weight [out, in] that pairs are fitted to, and what errors count; shared by all of its pairs."""

    weight: Tensor
    curvature: Curvature

    @functools.cached_property
    def weighted(self) -> Tensor:
        """W H."""
        return times(self.weight, self.curvature.inputs32)

    @functools.cached_property
    def loss(self) -> float:
        """What it costs to leave the weight out."""
        outputs = self.curvature.outputs
        sided = self.weight if outputs is None else outputs @ self.weight
        return float((sided * self.weighted).sum(dtype=torch.float64))

    def loss_with(self, left: Tensor, right: Tensor) -> float:
        """``Curvature.loss`` of the weight less the product of a pair, which is not made for it."""
        outputs = self.curvature.outputs
        sided = left.T if outputs is None else left.T @ outputs
        crossed = (sided @ self.weighted * right).sum(dtype=torch.float64)
        within = ((sided @ left) * (times(right, self.curvature.inputs32) @ right.T)).sum(dtype=torch.float64)
        return self.loss + float(within - 2 * crossed)

    def left_by(self, factors: Factorization) -> float:
        """The least loss of any pair of this rank: that of ``factors``, the best ones (Eckart and Young)."""
        return self.loss - float(factors.energies.sum())


def quantized_pair(
    target: Target, factors: Factorization, spec: QuantSpec
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """(left, right) at ``spec`` for the rank of ``factors``, which are where the search begins."""
    weight, curvature = target.weight, target.curvature
    right_goal = factors.right
    pair: tuple[QuantizedTensor, QuantizedTensor] | None = None
    for _ in range(_TURNS):
        if pair is not None:
            left = pair[0].dequantize()
            sided = left.T if curvature.outputs is None else left.T @ curvature.outputs
            right_goal = _solve(sided @ left, sided @ weight)
        (right,) = round_second_order(right_goal, [spec], curvature, sweeps=0)
        rounded = right.dequantize()
        moment = times(rounded, curvature.inputs32) @ rounded.T
        left_goal = _solve(moment, rounded @ target.weighted.T).T
        inner = Curvature(damp(moment.double(), _SIDE_DAMPING))
        (left_rounded,) = round_second_order(left_goal, [spec], inner)
        pair = left_rounded, right
    assert pair is not None
    return pair


class Corrections:
    """Dense terms of one weight, each with a low-rank correction.

    Args:
        target: the weight, and what errors count.
        weighting: the roots of that.
        most: the largest rank that will be asked for: smaller ones begin with a part of its factors.
    """

    def __init__(self, target: Target, weighting: Weighting, most: int) -> None:
        self._weight, self._curvature = target.weight, target.curvature
        self._weighting, self._most = weighting, most
        self._starts: dict[QuantSpec, tuple[QuantizedTensor, Target, Factorization]] = {}

    def least_loss(self, form: LayerForm) -> float:
        """Of the first turn, with the pair not rounded: further turns hardly make up for its rounding."""
        assert form.dense is not None
        _, rest, factors = self._start(form.dense)
        return rest.left_by(factors.truncate(form.rank))

    def quantized(self, form: LayerForm) -> tuple[QuantizedTensor, QuantizedTensor, QuantizedTensor]:
        """(dense, left, right) of ``form``: the best of the turns."""
        assert form.dense is not None
        assert form.factors is not None
        best: tuple[QuantizedTensor, QuantizedTensor, QuantizedTensor] | None = None
        least, product = float("inf"), None
        for _ in range(_TURNS):
            if product is None:
                dense, rest, factors = self._start(form.dense)
            else:
                dense, rest = self._dense(self._weight - product, form.dense)
                factors = self._weighting.factorize(rest.weight, form.rank)
            left, right = quantized_pair(rest, factors.truncate(form.rank), form.factors)
            product = left.dequantize() @ right.dequantize()
            loss = self._curvature.loss(rest.weight - product)
            if loss < least:
                best, least = (dense, left, right), loss
        assert best is not None
        return best

    def _start(self, spec: QuantSpec) -> tuple[QuantizedTensor, Target, Factorization]:
        """The first turn, up to the rank."""
        if spec not in self._starts:
            dense, rest = self._dense(self._weight, spec)
            self._starts[spec] = dense, rest, self._weighting.factorize(rest.weight, self._most)
        return self._starts[spec]

    def _dense(self, goal: Tensor, spec: QuantSpec) -> tuple[QuantizedTensor, Target]:
        """``goal`` rounded, and what that leaves of the weight."""
        # The pair answers for what the outputs' side asks, so this needs no descent.
        (dense,) = round_second_order(goal, [spec], self._curvature, sweeps=0)
        return dense, Target(self._weight - dense.dequantize(), self._curvature)


def _solve(moment: Tensor, target: Tensor) -> Tensor:
    """moment^{-1} target, float32; the moment may be singular where factors rounded to zero."""
    solution: Tensor = torch.linalg.solve(damp(moment.double(), _DAMPING), target.double())
    return solution.float()
