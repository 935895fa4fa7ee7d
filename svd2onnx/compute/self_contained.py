"""Values whose tensors have memory of their own: they may be sent elsewhere, and give the same numbers there.

A tensor that is a part of another takes the whole along where it is pickled. And sums over numbers that lie
at odd places in memory may round otherwise than where they arrive, which is at multiples of 64 bytes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

_ALIGNED = 64


def self_contained(value: Any) -> Any:
    """``value``, a dataclass, a list or a tuple, with copies of those tensors in it that are not whole.

    Copies are laid out as the originals are.
    """
    if isinstance(value, Tensor):
        whole = value.untyped_storage().nbytes() == value.nbytes and value.data_ptr() % _ALIGNED == 0
        return value if whole else value.clone()
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        parts = [self_contained(part) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        changed = {name: new for name, old in fields if (new := self_contained(old)) is not old}
        return dataclasses.replace(value, **changed) if changed else value
    return value
