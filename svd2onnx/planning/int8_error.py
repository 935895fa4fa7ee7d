"""What int8 arithmetic costs, and how the channels of inputs are evened out before they are rounded.

One scale serves all inputs of a call (DynamicQuantizeLinear), so channels that are much larger than the
others leave those few steps. Hence inputs are divided by d, the root of each channel's RMS over the
calibration inputs, and the weight is multiplied by it and rounded with one scale for each output.

With y'(x) what a layer computes in int8, y(x) what in float, and g the gradients of a probe, this costs

    1/2 E_sample ( sum_t  g_t^T ( y'(x_t) - y(x_t) ) )^2

Source: SmoothQuant (Xiao et al., arXiv 2211.10438), with RMS in place of maxima and without the range of W;
the prediction is that of ``prediction``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics, ProbedRows
from svd2onnx.calibration.moments import diagonal, times
from svd2onnx.values.schema import CompressedLayer

LARGEST = 127
"""Code of an int8 weight."""
_STEPS = 255
_TINY = 1e-30
_FLOOR = 1e-3
"""Of the mean RMS: channels that calibration hardly saw are not blown up."""
_BLIND = (8 / _STEPS) ** 2 / 12
"""Relative squared error of rounding normally distributed inputs, which reach to four deviations."""


def divisors(rms: Tensor) -> Tensor:
    """d [in], float32, of geometric mean 1, for inputs of root mean square ``rms`` [in]."""
    root = rms.double().clamp_min(max(_FLOOR * float(rms.mean()), _TINY)).sqrt()
    return (root / root.log().mean().exp()).float()


def input_rms(layer: CompressedLayer, statistics: LayerStatistics | None) -> dict[str, Tensor]:
    """The root mean square of every input channel of the MatMuls of ``layer``, float64, by factor."""
    if statistics is None or statistics.covariance is None or statistics.mean is None:
        return {}
    covariance, mean = statistics.covariance.double(), statistics.mean.double()
    own = (diagonal(covariance) + mean.square()).sqrt()
    rms = {"dense": own, "right": own}
    if layer.right is not None:
        right = layer.right.dequantize().double()
        rms["left"] = ((times(right, covariance) * right).sum(1) + (right @ mean).square()).sqrt()
    return rms


def rounding_errors(
    weight: Tensor, layers: Sequence[CompressedLayer], statistics: LayerStatistics | None
) -> list[float]:
    """The predicted error of the network when one layer computes in int8, for each of its stored forms.

    Args:
        weight: the float weight [out, in], which stands for every dense term.
        layers: what is stored.
        statistics: with probes; without, inputs are taken as normally distributed, and the error is that of
            the layer's outputs, relative and squared, as in ``score.RelativeChange``.
    """
    if statistics is None or not statistics.probes:
        return [_BLIND * (2 if layer.left is not None else 1) for layer in layers]
    evened = divisors(input_rms(layers[0], statistics)["dense"])
    wide = _rounded_weight(weight, evened)
    batches = [
        (probes, _rounded_inputs(probes.x.float(), evened, probes.lengths))
        for probes in statistics.probes
        if isinstance(probes, ProbedRows)
    ]
    dense = [_sums(probes, x @ wide.T - probes.x.float() @ weight.T) for probes, x in batches]
    totals = []
    for layer in layers:
        sums = dense if layer.dense is not None else [torch.zeros_like(own) for own in dense]
        if layer.left is not None and layer.right is not None:
            left, right = layer.left.dequantize(), layer.right.dequantize()
            inner = divisors(input_rms(layer, statistics)["left"])
            first, second = _rounded_weight(right, evened), _rounded_weight(left, inner)
            sums = [
                own
                + _sums(
                    probes,
                    _rounded_inputs(x @ first.T, inner, probes.lengths) @ second.T
                    - (probes.x.float() @ right.T) @ left.T,
                )
                for own, (probes, x) in zip(sums, batches, strict=True)
            ]
        totals.append(sum(float(own.square().sum()) for own in sums))
    count = sum(probes.count for probes in statistics.probes)
    return [total / (2 * count) for total in totals]


def _rounded_inputs(x: Tensor, divisors: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows ``x`` as DynamicQuantizeLinear rounds them, each sample by itself."""
    rounded = []
    for sample in torch.split(x / divisors, list(lengths)):
        step = (sample.max().clamp_min(0) - sample.min().clamp_max(0)) / _STEPS
        rounded.append((sample / step.clamp_min(_TINY)).round() * step)
    return torch.cat(rounded) * divisors


def _rounded_weight(weight: Tensor, divisors: Tensor) -> Tensor:
    """The weight [out, in] as its int8 form has it, one scale for each output."""
    wide = weight * divisors
    step = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(_TINY)
    return (wide / step).round() * step / divisors


def _sums(probes: ProbedRows, change: Tensor) -> Tensor:
    """sum_t g_t^T change_t of each sample, float64."""
    by_row = (change * probes.g.float()).sum(dim=1)
    return torch.stack([part.sum() for part in torch.split(by_row, list(probes.lengths))]).double()
