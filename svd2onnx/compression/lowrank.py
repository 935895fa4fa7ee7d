"""Truncated singular value decomposition, plain and weighted, and the article's rank rule.

    W [out, in] = U S V^T ~ L R,   L = U_k [out, k],   R = S_k V_k^T [k, in]

U and V are quantized and S stays in float: it multiplies the rows of V^T, and so the float scales of
their blocks. Storing S there costs nothing and leaves exactly two MatMuls.

Source: R. Dyro, "Posttraining Compression of Neural Network via SVD": the rank of a layer is the
smallest whose relative output error on example inputs is at most epsilon, found by bisection; where
the factors would be larger than the dense layer, the layer stays dense (and is quantized).

The weighted decomposition minimises tr(G D H D^T), the change of the network's output, in place of that of
the weight:

    G = B B^T,   H = C C^T,   B^T W C = P S Q^T,   L = B^-T P_k,   R = S_k Q_k^T C^-1

Source: SVD-LLM (Wang et al., arXiv 2403.07378) for the inputs' side, GFWSVD (arXiv 2505.17974) for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svd2onnx.calibration.moments import over, root, times
from svd2onnx.compression.quantize import quantize
from svd2onnx.values.schema import QuantizedTensor, QuantSpec

RANK_STEP = 16
"""Ranks are multiples of this, so that kernels work on whole vectors; smaller steps gain nothing."""


_SPECTRUM_FLOOR = 1e-6
_LARGE, _FEW = 1024, 8
_OVERSAMPLING, _POWERS = 32, 4
"""Of random projections (Halko et al., arXiv 0909.4061): from this side on, for at most an eighth of it."""


@dataclass(frozen=True)
class Factorization:
    """Float factors of full rank r: ``left`` [out, r] and ``right`` [r, in], strongest first.

    ``energies`` [r] are the squared singular values: how much of the squared error each rank saves.
    """

    left: Tensor
    right: Tensor
    energies: Tensor

    def truncate(self, rank: int) -> Factorization:
        return Factorization(self.left[:, :rank], self.right[:rank], self.energies[:rank])

    def quantize(self, spec: QuantSpec) -> tuple[QuantizedTensor, QuantizedTensor]:
        """Both factors rounded to ``spec``: (left, right)."""
        return quantize(self.left, spec), quantize(self.right, spec)


def factorize(weight: Tensor) -> Factorization:
    """The singular value decomposition of ``weight`` [out, in] as U and S V^T.

    ``factorize(w).truncate(k)`` is the best approximation of rank k; its squared Frobenius error is the
    sum of the dropped squared singular values (Eckart and Young).
    """
    left, right = _svd(weight.double())
    return Factorization(left.float(), right.float(), _energies(right))


Decompose = Callable[[Tensor], Factorization]


class Decompositions:
    """Remembers what it decomposed: for the many bounds that the article's rule is tried with."""

    def __init__(self, decompose: Decompose = factorize) -> None:
        self._decompose = decompose
        self._known: dict[tuple[int, torch.Size], tuple[Tensor, Factorization]] = {}

    def __call__(self, weight: Tensor) -> Factorization:
        """The decomposition of ``weight``, which must not change from one call to the next."""
        key = weight.data_ptr(), weight.shape
        if key not in self._known:
            self._known[key] = weight, self._decompose(weight)  # the weight is kept, and so its place
        return self._known[key][1]


class Weighting:
    """The square roots of the moments that weigh a change: computed once for all weights of a shape.

    Args:
        inputs: H [in, in], positive semidefinite, or its diagonal [in].
        outputs: G [out, out] likewise, or None for the identity.
    """

    def __init__(self, inputs: Tensor, outputs: Tensor | None = None) -> None:
        self._inputs = root(inputs.double(), _SPECTRUM_FLOOR)
        self._outputs = None if outputs is None else root(outputs.double(), _SPECTRUM_FLOOR)

    def factorize(self, weight: Tensor, rank: int | None = None) -> Factorization:
        """The best factors of every rank of ``weight`` [out, in], or of ``rank`` alone, which may be quicker.

        The squared error tr(G D H D^T) of rank k is the sum of the dropped squared singular values. The
        columns of ``left`` have unit mean square, so that its blocks suit one scale.
        """
        leads = rank is not None and _is_quicker_by_projection(weight, rank)
        dtype = torch.float32 if leads else torch.float64  # projections are no more exact than that
        inputs = self._inputs.to(dtype)
        weighted = times(weight.to(dtype), inputs)
        if self._outputs is not None:
            weighted = self._outputs.to(dtype).T @ weighted
        left, right = _leading(weighted, rank) if leads and rank else _svd(weighted)
        left, right = left[:, :rank], right[:rank]
        energies = _energies(right)
        if self._outputs is not None:
            left = over(left.T, self._outputs.to(dtype)).T
        size = left.square().mean(dim=0).sqrt().clamp_min(torch.finfo(dtype).tiny)
        right = size.unsqueeze(1) * over(right, inputs)
        return Factorization((left / size).float(), right.float(), energies)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """U and S V^T; of large matrices by the eigenvectors of M M^T, or of R R^T where M = Q R is taller.

    That is several times quicker, and wrong only in singular values that are 1e-8 of the largest.
    """
    rows, columns = matrix.shape
    if min(rows, columns) < _LARGE:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return _signed(u, s.unsqueeze(1) * vt)
    basis, rest = torch.linalg.qr(matrix) if rows > columns else (None, matrix)
    left = torch.linalg.eigh(rest @ rest.T).eigenvectors.flip(1)
    right = left.T @ rest
    return _signed(left if basis is None else basis @ left, right)


def _is_quicker_by_projection(matrix: Tensor, rank: int) -> bool:
    smaller = min(matrix.shape)
    return smaller >= _LARGE and rank <= smaller // _FEW


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first ``rank`` of U and S V^T by random projections, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(matrix.shape[1], rank + _OVERSAMPLING, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ drawn.to(matrix.device)).Q
    for _ in range(_POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, right = _svd(basis.T @ matrix)
    return _signed(basis @ left[:, :rank], right[:rank])


def _energies(right: Tensor) -> Tensor:
    """Float64 [r], of S V^T."""
    return right.double().square().sum(dim=1)


def _signed(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The pair in which the largest entry of each column of ``left`` is positive.

    A library may choose any signs, and codes, which reach further on one side, would depend on that.
    """
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -torch.ones_like(largest), torch.ones_like(largest))
    return left * signs, right * signs.T


def largest_paying_rank(shape: tuple[int, int], spec: QuantSpec) -> int:
    """The largest multiple of RANK_STEP whose pair takes fewer bytes than the dense matrix; 0 for none."""
    rows, columns = shape
    budget = spec.stored_bytes(rows, columns)
    rank = RANK_STEP
    while spec.stored_bytes(rows, rank) + spec.stored_bytes(rank, columns) < budget:
        rank += RANK_STEP
    return min(rank - RANK_STEP, min(shape))


def smallest_rank(
    weight: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    spec: QuantSpec,
    epsilon: float,
    decompose: Decompose = factorize,
) -> int | None:
    """The article's rank rule, by bisection over the multiples of RANK_STEP.

    Args:
        weight: [out, in].
        inputs: example inputs of the layer, [samples, in].
        bias: [out] or None; it counts in the layer's output.
        spec: bits and block size of both factors.
        epsilon: bound of ||y~ - y|| / ||y||, y the layer's outputs on ``inputs``.
        decompose: ``factorize``, or one that remembers.

    Returns:
        The smallest rank that meets epsilon with quantized factors, or None where every one that
        does would take more bytes than the dense quantized layer.
    """
    factors = decompose(weight)
    outputs = inputs @ weight.T
    size = torch.linalg.norm(outputs if bias is None else outputs + bias)

    def meets(rank: int) -> bool:
        left, right = factors.truncate(rank).quantize(spec)
        error = inputs @ right.dequantize().T @ left.dequantize().T - outputs
        return bool(torch.linalg.norm(error) <= epsilon * size)

    rows, columns = weight.shape
    high = largest_paying_rank((rows, columns), spec) // RANK_STEP
    if high == 0 or not meets(high * RANK_STEP):
        return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if meets(middle * RANK_STEP):
            high = middle
        else:
            low = middle
    return high * RANK_STEP
