"""A GPU that is pretended: tensors on it hold their numbers on the CPU, and say that they lie on cuda:0.

Everything that a function does with them is really computed, so that results equal the CPU's bit for bit,
and an operation that mixes them with a tensor of the CPU fails, as it does on a GPU: one that was made
without a device, say. Numbers of no dimension mix freely, there too.

It may also round sums otherwise, as the libraries of a GPU do.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from svd2onnx.compute.device import CPU
from svd2onnx.pipeline import preparation

CUDA = torch.device("cuda", 0)
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_SUMS = set(
    "mm addmm addmm_ bmm baddbmm convolution convolution_backward sum mean linalg_vector_norm _softmax "
    "_linalg_eigh _linalg_svd linalg_cholesky_ex cholesky_inverse linalg_qr _linalg_solve_ex".split()
)


class _Pretended(Tensor):
    """To torch itself it is on "meta", which needs no driver."""

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    def __new__(cls, held: Tensor) -> "_Pretended":
        made: _Pretended = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"pretended to be on {CUDA}: {self.held}"

    def tolist(self) -> Any:
        return self.held.tolist()

    def quantile(self, *args: Any, **kwargs: Any) -> Tensor:
        """Made of operators that ask for further tensors where torch thinks that this one is."""
        return _Pretended(self.held.quantile(*args, **kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of a tensor on the pretended GPU, which is not there any more")


class _Gpu(TorchDispatchMode):
    def __init__(self, rounds_otherwise: bool) -> None:
        super().__init__()
        self._rounds_otherwise = rounds_otherwise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.scalar_tensor.default and kwargs.get("device") == torch.device("meta"):
            kwargs["device"] = CPU  # a number in a formula of torch, made where it thinks that we are
        leaves = tree_leaves((args, kwargs))
        is_there = any(isinstance(leaf, _Pretended) for leaf in leaves)
        if not is_there and not any(isinstance(leaf, torch.device) and leaf == CUDA for leaf in leaves):
            return func(*args, **kwargs)
        if _is_made_of_others(func):  # as inference mode hands it on
            with self:
                return func.decompose(*args, **kwargs)
        if is_there and func not in _COPIES:
            for leaf in leaves:
                if isinstance(leaf, Tensor) and leaf.ndim and not isinstance(leaf, _Pretended):
                    raise RuntimeError(f"{func} mixes the GPU with a CPU tensor {list(leaf.shape)}")
        lands = isinstance(args[0], _Pretended) if func is torch.ops.aten.copy_.default else is_there
        if kwargs.get("device") is not None:
            lands = torch.device(kwargs["device"]) == CUDA
            kwargs["device"] = CPU
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if self._rounds_otherwise and func.overloadpacket.__name__ in _SUMS:
            result = tree_map(self._otherwise, result)
        if not lands:
            return result
        result = tree_map(lambda leaf: _Pretended(leaf) if isinstance(leaf, Tensor) else leaf, result)
        if is_there and _shows_its_arguments(func):
            return return_and_correct_aliasing(func, args, kwargs, result)
        return result

    def _otherwise(self, leaf: Any) -> Any:
        """Numbers of which each is up to a unit in the last place away, equal ones by equally much."""
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        bits = leaf.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[leaf.itemsize])
        return leaf.mul_(1 + torch.finfo(leaf.dtype).eps * torch.sin(bits.double()).to(leaf.dtype))


@functools.cache
def _is_made_of_others(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _shows_its_arguments(func: Any) -> bool:
    """Whether it changes them, or gives back a view."""
    return any(own.alias_info is not None for own in (*func._schema.arguments, *func._schema.returns))


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, _Pretended) else leaf


@contextmanager
def pretended_gpu(free: int = 8 << 30, rounds_otherwise: bool = False) -> Iterator[torch.device]:
    """Within it there is a GPU with so many bytes ``free``, which ``--device auto`` takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        # Not torch.cuda.is_available: torch's exporter would go and ask the GPU.
        patch.setattr(preparation, "resolve_device", lambda asked: CPU if asked == "cpu" else CUDA)
        patch.setattr(torch.cuda, "get_device_name", lambda _device: "pretended")
        patch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, free))
        with _Gpu(rounds_otherwise):
            yield CUDA
