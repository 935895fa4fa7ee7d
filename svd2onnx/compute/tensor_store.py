"""Tensors that are kept for long: in memory up to a limit, beyond it in nameless files mapped into memory.

The system writes pages of such a file out and reads them back as it needs its memory, so that a network,
its statistics and its codes may together be larger than the machine. Nothing else has to know where a tensor
lies. The files are in the folder for temporary files (TMPDIR) and vanish with their tensors, however the
process ends.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from svd2onnx.values.errors import OutputError

LIMIT = 2 << 30
"""Bytes that stay in memory."""
_SMALL = 1 << 20
"""Tensors of fewer bytes are not worth a file."""
_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"
"""Lets transformers read weights in the thread that asks for them, which is the one whose calls are seen."""


class TensorStore:
    """Holds what is put on it in memory until that takes ``limit`` bytes, and what comes then in files."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        # By address: the storage, which outlives the tensors that first show it, and its bytes in memory.
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def overflows(self) -> bool:
        """Whether some of it is in files."""
        return any(size == 0 for _, size in self._held.values())

    def zeros(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A new tensor.

        Raises:
            OutputError: the folder for temporary files has no room for it.
        """
        if self._has_room(math.prod(shape) * dtype.itemsize):
            return self.keep(torch.zeros(shape, dtype=dtype))
        return self._noted(_in_file(shape, dtype), in_memory=0)

    def keep(self, tensor: Tensor) -> Tensor:
        """``tensor`` itself, or its copy in a file; errors as of ``zeros``."""
        if self._holds(tensor):
            return tensor
        if self._has_room(tensor.nbytes):
            return self._noted(tensor, tensor.nbytes)
        return self.zeros(tensor.shape, tensor.dtype).copy_(tensor.detach())

    def keep_module(self, module: nn.Module) -> None:
        """Put the parameters and buffers of ``module`` into the store; errors as of ``zeros``."""
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = self.keep(tensor.detach())

    def _has_room(self, size: int) -> bool:
        if size < _SMALL:
            return True
        alive = {place: own for place, own in list(self._held.items()) if not _is_gone(own[0])}
        self._held = alive
        return size + sum(own for _, own in alive.values()) <= self._limit

    def _holds(self, tensor: Tensor) -> bool:
        held = self._held.get(tensor.untyped_storage().data_ptr())
        return held is not None and not _is_gone(held[0])

    def _noted(self, tensor: Tensor, in_memory: int) -> Tensor:
        if tensor.nbytes >= _SMALL:
            storage = tensor.untyped_storage()
            self._held[storage.data_ptr()] = StorageWeakRef(storage), in_memory  # type: ignore[no-untyped-call]
        return tensor


def _is_gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]


class CreatedIn(TorchFunctionMode):
    """While it is entered, the weights of modules that are made or converted lie on ``store``.

    They are made by ``torch.empty``, and read in another dtype by ``Tensor.to``.
    """

    def __init__(self, store: TensorStore) -> None:
        super().__init__()
        self._store = store

    def __enter__(self) -> CreatedIn:
        self._threads = os.environ.get(_NO_THREADS)
        os.environ[_NO_THREADS] = "1"
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        os.environ.pop(_NO_THREADS)
        if self._threads is not None:
            os.environ[_NO_THREADS] = self._threads

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and args and not any(kwargs.get(name) for name in set(kwargs) - {"dtype"}):
            shape = args[0] if isinstance(args[0], Sequence) else args
            if all(type(size) is int for size in shape):
                return self._store.zeros(shape, kwargs.get("dtype") or torch.get_default_dtype())
        result = func(*args, **kwargs)
        if func is torch.Tensor.to and result is not args[0] and result.device.type == "cpu":
            return result if result.requires_grad else self._store.keep(result)
        return result


def _in_file(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    count = math.prod(shape)
    size = count * dtype.itemsize
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is found here, not by a signal later
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise OutputError(
            f"cannot keep {size:,} bytes in {tempfile.gettempdir()}: {error.strerror}; large networks need "
            "several times the bytes of their weights there: set TMPDIR to a folder that has room"
        ) from None
    return torch.frombuffer(mapped, dtype=dtype, count=count).reshape(tuple(shape))
