"""The tensors that a network gives, and what they are called: as its structure calls them.

    {"logits": a, "states": (b, c)}    logits, states.0, states.1
    (a, None, (b, c))                  output, output_1, output_2

Keys of dicts and fields of named tuples, dataclasses and ``ModelOutput`` of ``transformers`` are names;
whatever is no tensor is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svd2onnx.values.errors import ExportError

NAMELESS = "output"


def tensors_of(result: Any) -> list[Tensor]:
    """All tensors in the result of a network, in order."""
    return [tensor for _, tensor in _walk(result, ())]


def expected_tensors(result: Any) -> list[Tensor]:
    """``tensors_of(result)``, of what forward gave.

    Raises:
        ExportError: there is none.
    """
    tensors = tensors_of(result)
    if not tensors:
        raise ExportError(
            f"expected tensors from the network's forward, found {type(result).__name__} without any"
        )
    return tensors


def names_of(result: Any, taken: Iterable[str] = ()) -> list[str]:
    """A name for each of ``tensors_of(result)``, all different and none of them ``taken``."""
    names: list[str] = []
    known = set(taken)
    for path, _ in _walk(result, ()):
        names.append(unused(".".join(path) or NAMELESS, known))
        known.add(names[-1])
    return names


def is_named(names: Iterable[str]) -> bool:
    """Whether any of ``names`` tells more than that it is an output."""
    return any(name.split("_")[0] != NAMELESS for name in names)


def unused(name: str, known: set[str]) -> str:
    """``name``, with the first number behind it that makes it none of ``known``."""
    numbered, number = name, 0
    while numbered in known:
        number += 1
        numbered = f"{name}_{number}"
    return numbered


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Places in sequences are part of a name only where there is a name before them."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for name, part in _parts(value):
        if isinstance(name, int):
            below = (*path, str(name)) if path else ()
        else:
            below = (*path, name) if name else path
        yield from _walk(part, below)


def _text(key: object) -> str:
    """A key as it is written to look its value up: members of an enumeration of texts are those texts."""
    return str.__str__(key) if isinstance(key, str) else str(key)


def _parts(value: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        return [(_text(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    # Containers that were made known to PyTorch, such as caches of keys and values.
    leaves = torch.utils._pytree.tree_leaves(value)
    return [] if len(leaves) == 1 and leaves[0] is value else list(enumerate(leaves))
