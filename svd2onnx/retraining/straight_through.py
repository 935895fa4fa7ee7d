"""Weights that train while every forward pass sees what will be stored.

    W = s q,    q = round(v) in [-2^(bits-1), 2^(bits-1) - 1],    s = s_0 r on the grid of storable steps

Trained are the latent codes v and the ratios r, one of each step. Rounding passes gradients on unchanged:

    dL/dv = dL/dW s,      dL/dr = s sum over the block of dL/dW q

In units of codes one learning rate serves every layer at every width, and a step that moves drags no code
along with it. v starts at the code, leaning by ``_LEAN`` to where the float weight lies.

Source: Bengio et al., arXiv 1308.3432 (straight-through); Esser et al., "Learned Step Size Quantization",
arXiv 1902.08153, whose gradient of s differs in that there v moves with s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from svd2onnx.network.convolution import Convolution, convolve, mix
from svd2onnx.values.scales import ScaleGrid, widen
from svd2onnx.values.schema import CompressedLayer, QuantizedTensor

_LEAN = 0.5
_RATIOS = (0.5, 2.0)
_EDGE = 0.49
"""How far a latent code may stand beyond the codes."""


class TrainedTensor(nn.Module):
    """The trainable form of a ``QuantizedTensor``; ``weight`` [rows, columns] is what it stands for now.

    ``weight`` is a leaf: gradients gather in it over any number of backward passes, and ``pull`` hands
    them on to ``codes`` [rows, blocks, block size] (0 beyond the columns) and ``ratios`` [rows, blocks].
    """

    weight: Tensor

    def __init__(self, stored: QuantizedTensor, original: Tensor | None = None) -> None:
        super().__init__()
        self.spec, self.columns = stored.spec, stored.codes.shape[1]
        self.grid = ScaleGrid(stored.scale.dtype, stored.unit)
        self.scale = stored.scale.clone()
        codes = self._blocks(stored.codes.float())
        if original is not None:
            wanted = self._blocks(original.float()) / stored.steps.unsqueeze(-1)
            codes = codes + (wanted - codes).clamp_(-_EDGE, _EDGE).mul_(_LEAN)
        self.codes = nn.Parameter(codes)
        self.ratios = nn.Parameter(torch.ones_like(stored.steps))
        self.weight = codes.new_empty(stored.codes.shape).requires_grad_()
        self.push()

    @torch.no_grad()
    def push(self) -> None:
        """Bring ``codes`` and ``ratios`` back into their ranges, and ``weight`` up to date."""
        low, high = self.spec.code_range
        self.codes.clamp_(low - _EDGE, high + _EDGE)
        self.ratios.clamp_(*_RATIOS)
        steps = widen(self._scales(), self.grid.unit).unsqueeze(-1)
        self.weight.copy_((torch.round(self.codes) * steps).flatten(1)[:, : self.columns])

    @torch.no_grad()
    def pull(self) -> None:
        """Turn the gradient of ``weight`` into those of ``codes`` and ``ratios``."""
        if self.weight.grad is None:
            return
        steps = widen(self._scales(), self.grid.unit).unsqueeze(-1)
        gradient = self._blocks(self.weight.grad).mul_(steps)
        self.ratios.grad = (gradient * torch.round(self.codes)).sum(-1)
        self.codes.grad = gradient
        self.weight.grad = None

    @torch.no_grad()
    def stored(self) -> QuantizedTensor:
        """The tensor to store: ``dequantize`` equals ``weight`` bit for bit."""
        codes = torch.round(self.codes).flatten(1)[:, : self.columns].to(torch.int8)
        return QuantizedTensor(codes.contiguous(), self._scales(), self.spec, self.grid.unit)

    def _scales(self) -> Tensor:
        scales = self.grid.store(widen(self.scale, self.grid.unit) * self.ratios)
        return torch.where(scales == 0, self.scale, scales)

    def _blocks(self, matrix: Tensor) -> Tensor:
        padded = functional.pad(matrix, (0, -self.columns % self.spec.block_size))
        return padded.reshape(matrix.shape[0], -1, self.spec.block_size)


class TrainedLayer(nn.Module):
    """The trainable tensors of a ``CompressedLayer``, shared by all modules of its site."""

    def __init__(self, layer: CompressedLayer, original: Tensor, *, trains_shift: bool) -> None:
        super().__init__()
        self.layer = layer
        rest = original if layer.left is None else None
        if layer.left is not None and layer.right is not None and layer.dense is not None:
            rest = original - layer.left.dequantize() @ layer.right.dequantize()
        self.dense = TrainedTensor(layer.dense, rest) if layer.dense else None
        self.left = TrainedTensor(layer.left) if layer.left else None
        self.right = TrainedTensor(layer.right) if layer.right else None
        shift = layer.bias_shift if trains_shift else None
        self.shift = None if shift is None else nn.Parameter(shift.clone())

    def forward(self, x: Tensor, convolution: Convolution | None = None) -> Tensor:
        """[..., in] -> [..., out], without the bias of the module.

        With a ``convolution``, whose geometry counts, [batch, in, *space] -> [batch, out, *space].
        """
        y: Tensor | None = None
        if self.dense is not None:
            y = _multiply(x, self.dense.weight, convolution)
        if self.right is not None and self.left is not None:
            inner = _multiply(x, self.right.weight, convolution)
            pair = _mix(inner, self.left.weight, convolution)
            y = pair if y is None else y + pair
        if y is None:
            y = x.new_zeros((*x.shape[:-1], self.layer.shape[0]))
        return y if self.shift is None else y + _along_outputs(self.shift, convolution)

    def stored(self) -> CompressedLayer:
        """The layer to store; its shift is None where the biases of its modules have taken it up."""

        def part(trained: TrainedTensor | None) -> QuantizedTensor | None:
            return None if trained is None else trained.stored()

        shift = None if self.shift is None else self.shift.detach().clone()
        return replace(
            self.layer,
            dense=part(self.dense),
            left=part(self.left),
            right=part(self.right),
            bias_shift=shift,
        )


class TrainedModule(nn.Module):
    """What takes a module's place: y = layer(x) + b, with a bias b of its own or None."""

    def __init__(
        self, layer: TrainedLayer, bias: nn.Parameter | None, convolution: Convolution | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.bias = bias
        self._convolution = [convolution]  # in a list, because its parameters are not trained

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or that of a convolution."""
        (convolution,) = self._convolution
        y: Tensor = self.layer(x, convolution)
        return y if self.bias is None else y + _along_outputs(self.bias, convolution)


class TrainedStored(nn.Module):
    """What takes the place of a stored weight of ``shape``."""

    def __init__(self, layer: TrainedLayer, shape: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        self.shape = tuple(shape)

    def forward(self) -> Tensor:
        """The weight, in its shape."""
        assert self.layer.dense is not None
        return self.layer.dense.weight.reshape(self.shape)


def _multiply(x: Tensor, weight: Tensor, convolution: Convolution | None) -> Tensor:
    if convolution is None:
        return functional.linear(x, weight)
    return convolve(convolution, x, weight.reshape(-1, *convolution.weight.shape[1:]))


def _mix(x: Tensor, weight: Tensor, convolution: Convolution | None) -> Tensor:
    if convolution is None:
        return functional.linear(x, weight)
    return mix(x, weight.reshape(*weight.shape, *(1 for _ in convolution.kernel_size)))


def _along_outputs(vector: Tensor, convolution: Convolution | None) -> Tensor:
    """A vector [out] as it is added to outputs."""
    return vector if convolution is None else vector.reshape(-1, *(1 for _ in convolution.kernel_size))
