"""Masked values of an output in PyTorch, by the rule of ``svd2onnx_runtime.masking``."""

from __future__ import annotations

import torch
from torch import Tensor

from svd2onnx_runtime.masking import LARGE, mask_values


def masked(reference: Tensor) -> Tensor | None:
    """Which values of ``reference`` are masked, as booleans of its shape; None where none is."""
    if not reference.is_floating_point():
        return None
    reference = reference.detach()
    large = reference.abs() >= LARGE
    if not bool(large.any()):
        return None
    found = mask_values(reference[large].double().cpu().numpy())
    if not found.size:
        return None
    return torch.isin(reference.double(), torch.from_numpy(found).to(reference.device))


def unmasked(reference: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
    """``reference`` and ``outputs``, of its shape, with zeros where it is masked.

    There, no change of a layer changes what a network gives: what is lost by masks that differ is found in
    the file.
    """
    found = masked(reference)
    if found is None:
        return reference, *outputs
    return tuple(own.masked_fill(found, 0) for own in (reference, *outputs))
