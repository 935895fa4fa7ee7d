"""A convolution is to the rest a matrix [out, in / groups * kernel] that multiplies patches of its input.

    y[:, p] = W x[patch at p] + b

Stride, padding and dilation say which patches there are. Source: Chellapilla et al., "High Performance
Convolutional Neural Networks for Document Processing" (2006), known as im2col.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, grad

from svd2onnx.values.schema import Geometry

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_APPLY: dict[int, Callable[..., Any]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_BACK: dict[int, Callable[..., Any]] = {
    1: grad.conv1d_weight,
    2: grad.conv2d_weight,
    3: grad.conv3d_weight,
}


def convolution_at(model: nn.Module, name: str) -> Convolution:
    """The convolution called ``name``."""
    module = model.get_submodule(name)
    assert isinstance(module, CONVOLUTIONS)
    return module


def geometry_of(module: Convolution) -> Geometry:
    """What says which patches ``module`` takes."""
    sides = module._reversed_padding_repeated_twice  # of the last axis first: before, behind
    before, behind = sides[-2::-2], sides[::-2]
    padding = (*before, *behind)
    return Geometry(module.kernel_size, module.stride, padding, module.dilation, module.groups)


def without_weight(module: Convolution) -> Convolution:
    """``module`` as what says how patches are taken: it keeps no weight."""
    geometry = copy.copy(module)
    geometry._parameters = {"weight": None, "bias": None}
    return geometry


def convolve(module: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``module`` with another ``weight`` [channels, in / groups, *kernel] and ``bias``."""
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        x, padding = pad(module, x), 0
    result: Tensor = _APPLY[len(module.kernel_size)](
        x, weight, bias, module.stride, padding, module.dilation, module.groups
    )
    return result


def mix(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of kernel 1: ``weight`` [out, channels, 1, ...]."""
    result: Tensor = _APPLY[weight.ndim - 2](x, weight, bias)
    return result


def pad(module: Convolution, x: Tensor) -> Tensor:
    """``x`` [batch, in, *space] with the padding that ``module`` asks for."""
    sides = module._reversed_padding_repeated_twice
    if not any(sides):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, sides, mode=mode)


def patches(module: Convolution, x: Tensor, most: int) -> Tensor:
    """Patches [samples * positions, in * kernel] of ``x`` [samples, in, *space].

    At most ``most`` of each sample, evenly spread over the positions.
    """
    padded = pad(module, x)
    axes = range(len(module.kernel_size))
    sizes = [
        (padded.shape[2 + i] - module.dilation[i] * (module.kernel_size[i] - 1) - 1) // module.stride[i] + 1
        for i in axes
    ]
    count = torch.Size(sizes).numel()
    chosen = torch.linspace(0, count - 1, min(count, most)).round().long()
    starts = torch.unravel_index(chosen, sizes)
    flat, parts = padded.flatten(2), []
    for offset in itertools.product(*(range(size) for size in module.kernel_size)):
        # Only what is chosen is read: all windows together are many times the input.
        place = torch.zeros_like(chosen)
        for i in axes:
            along = starts[i] * module.stride[i] + offset[i] * module.dilation[i]
            place = place * padded.shape[2 + i] + along
        parts.append(flat.index_select(2, place.to(x.device)))
    # [samples, in, kernel, positions], in the order of the flattened weight.
    stacked = torch.stack(parts, dim=2).flatten(1, 2)
    return stacked.transpose(1, 2).flatten(0, 1)


def weight_gradients(module: Convolution, x: Tensor, gradient: Tensor) -> Iterator[Tensor]:
    """sum_p g_p patch_p^T, [out, in / groups * kernel], of each sample.

    Args:
        module: gives stride, padding, dilation and groups.
        x: its inputs, [samples, in, *space].
        gradient: at its outputs, [samples, out, *space].
    """
    back, padded = _BACK[len(module.kernel_size)], pad(module, x)
    for own, g in zip(torch.split(padded, 1), torch.split(gradient, 1), strict=True):
        result: Tensor = back(
            own,
            module.weight.shape,
            g,
            stride=module.stride,
            padding=0,
            dilation=module.dilation,
            groups=module.groups,
        )
        yield result.flatten(1)
