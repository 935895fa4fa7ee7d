"""Whether a rounding fitted to inputs is better than rounding to nearest, on inputs that it never saw.

With few samples, or inputs that are independent of one another, what is fitted follows chance: better on the
samples that it knows, and worse on others. For D = W - W~ and held-out inputs x, output i has the error

    e_i = sum_x (D_i x)^2

and each output has one vote. In a sum of errors one output of large weights would decide alone.
"""

from __future__ import annotations

from torch import Tensor

from svd2onnx.values.schema import QuantizedTensor


def better_on(
    inputs: Tensor, weight: Tensor, nearest: QuantizedTensor, fitted: QuantizedTensor
) -> QuantizedTensor:
    """The one that more outputs of ``weight`` [out, in] prefer on ``inputs`` [n, in]; else ``fitted``."""
    errors = [(inputs @ (weight - stored.dequantize()).T).square().sum(dim=0) for stored in (nearest, fitted)]
    votes = (errors[0] < errors[1]).sum() - (errors[1] < errors[0]).sum()
    return nearest if int(votes) > 0 else fitted
