"""Attributes of a network by their dotted names: modules, parameters, buffers, and what else there is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def find(root: nn.Module, name: str) -> Any:
    """The attribute of ``root`` with the dotted ``name``; None where it has none."""
    value: Any = root
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def put(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Make ``value`` the attribute of ``root`` with the dotted ``name``; a plain tensor becomes a buffer.

    Modules on the way are made where there are none.
    """
    *folders, last = name.split(".")
    for folder in folders:
        if not hasattr(root, folder):
            setattr(root, folder, nn.Module())
        root = getattr(root, folder)
    if isinstance(value, nn.Module | nn.Parameter):
        setattr(root, last, value)
    else:
        root.register_buffer(last, value)
