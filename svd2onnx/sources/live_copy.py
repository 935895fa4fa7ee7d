"""A copy of a network in memory, also of one that ``copy.deepcopy`` cannot copy.

Tensors are copied too: a forward may write into its weights, as that of ``nn.Embedding`` with ``max_norm``
does, and the user's stay as they are. Locks, generators, open files and their like are no part of what is
computed: where they cannot be copied, the copy has the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from svd2onnx.compute.device import CPU, copied
from svd2onnx.values.errors import SourceError, one_line


def live_copy(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on the CPU, in float32 and eval mode, without gradients.

    Raises:
        SourceError: it cannot be copied.
    """
    try:
        plain = {id(own): own.detach().to(CPU, copy=True) for own in _plain_tensors(network)}
        try:
            (made,) = copied(CPU, network, known=plain)
        except Exception:
            (made,) = copied(CPU, network, known=plain | _uncopyable(network, plain))
    except Exception as error:
        raise SourceError(
            f"the network cannot be copied ({type(error).__name__}: {one_line(error)}), and a copy is "
            "what is compressed; expected one that copy.deepcopy takes: let its attributes hold no layers "
            "together with what cannot be copied, and run it once if it has lazy layers"
        ) from error
    return made.float().eval().requires_grad_(False)


def _plain_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Those in attributes; they may be computed with gradients, and such tensors cannot be copied."""
    owned = {id(own) for own in (*network.parameters(), *network.buffers())}
    for module in network.modules():
        for leaf in tree_leaves(vars(module)):
            if isinstance(leaf, Tensor) and id(leaf) not in owned:
                yield leaf


def _uncopyable(network: nn.Module, plain: Mapping[int, Tensor]) -> dict[int, Any]:
    """By id, the attributes that cannot be copied, and hold no module: the user's would be run with it."""
    whole = (*network.modules(), *network.parameters(), *network.buffers())
    known = {**plain, **{id(own): own for own in whole}}
    found = {}
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, bool | int | float | str | None) or _holds_module(value):
                continue
            try:
                copy.deepcopy(value, dict(known))
            except Exception:
                found[id(value)] = value
    return found


def _holds_module(value: Any) -> bool:
    parts = [value, getattr(value, "__dict__", None)]
    return any(isinstance(leaf, nn.Module) for leaf in tree_leaves(parts))
