"""State dicts: weights without a network, which ``--model file.py`` builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx.values.errors import SourceError

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Under which training scripts keep the weights beside the optimizer's state."""
_SHOWN = 3


def tensors_of(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict in what torch.save wrote: itself, or an entry of a checkpoint.

    Raises:
        SourceError: there is none.
    """
    for name in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not loaded:
        found = type(loaded).__name__ if not isinstance(loaded, Mapping) else "an empty dict"
        raise SourceError(f"{path} holds {found}; expected a state dict, from names to tensors")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise SourceError(
                f"{path} holds {type(value).__name__} under {str(name)[:80]!r}; expected a state dict, from "
                "names to tensors: save network.state_dict()"
            )
    return dict(loaded)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, architecture: Path) -> None:
    """Put ``tensors`` into ``model``, whose names and shapes must be theirs.

    Raises:
        SourceError: names are missing or unknown, or shapes differ.
    """
    wanted = model.state_dict()
    if all(name.startswith("module.") for name in tensors) and not any(
        n.startswith("module.") for n in wanted
    ):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}  # DataParallel
    missing = [name for name in wanted if name not in tensors]
    shared = _places(wanted)
    missing = [
        name for name in missing if not any(alias in tensors for alias in shared[_place(wanted[name])])
    ]
    unknown = [name for name in tensors if name not in wanted]
    differing = [n for n, t in tensors.items() if n in wanted and t.shape != wanted[n].shape]
    problems = []
    if missing:
        problems.append(f"lacks {_some(missing)}")
    if unknown:
        problems.append(f"has {_some(unknown)} that build() does not")
    if differing:
        name = differing[0]
        shapes = f"{list(tensors[name].shape)}, not {list(wanted[name].shape)}"
        problems.append(f"has {_some(differing)} of other shapes ({shapes})")
    if problems:
        raise SourceError(
            f"{path} does not fit the network of {architecture}: it {'; it '.join(problems)}; expected "
            "exactly the names and shapes of build().state_dict()"
        )
    with torch.no_grad():
        model.load_state_dict(dict(tensors), strict=False)


def _places(wanted: Mapping[str, Tensor]) -> dict[tuple[int, ...], list[str]]:
    places: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in wanted.items():
        places.setdefault(_place(tensor), []).append(name)
    return places


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Tensors of one place are one: safetensors stores one of tied weights."""
    return (tensor.data_ptr(), *tensor.shape) if tensor.numel() else (id(tensor),)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
