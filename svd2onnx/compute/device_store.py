"""Where sums over many passes lie: beside the passes as far as a GPU has room, and else in the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from svd2onnx.compute.device import CPU, each_tensor
from svd2onnx.compute.tensor_store import TensorStore

T = TypeVar("T")
_SHARE = 0.25
"""Of a GPU's free memory that sums may take: the rest is for the passes."""


class DeviceStore:
    """Gives sums their place: on ``device`` as long as ``_SHARE`` of what is free there, or on ``store``."""

    def __init__(self, device: torch.device, store: TensorStore) -> None:
        self._device, self._store = device, store
        self._left = 0 if device == CPU else int(_SHARE * free_bytes(device))

    def zeros(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A new tensor; errors as of ``Shelf.zeros``."""
        size = math.prod(shape) * dtype.itemsize
        if size > self._left:
            return self._store.zeros(shape, dtype)
        self._left -= size
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def hold(self, tensor: Tensor) -> Tensor:
        """``tensor``, which a pass needs until its gradients come: in the store, or where it is on a GPU."""
        return self._store.keep(tensor) if tensor.device == CPU else tensor

    def keep(self, tensor: Tensor) -> Tensor:
        """``tensor`` in the store; errors as of ``zeros``."""
        return self._store.keep(tensor.cpu())

    def kept(self, value: T) -> T:
        """``value``, see ``each_tensor``, with what is on a GPU put in the store."""
        return each_tensor(value, lambda own: own if own.device == CPU else self.keep(own))


def free_bytes(device: torch.device) -> int:
    """Of a GPU's memory."""
    return torch.cuda.mem_get_info(device)[0]
