"""Pickled modules (torch.save of a whole network).

Loading one runs whatever the file says: it is done only where the user allowed it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svd2onnx.sources.pickles import foreign_globals, load_weights_only
from svd2onnx.values.errors import SourceError, one_line


def load_pickle(path: Path, *, trusted: bool) -> Any:
    """What torch.save wrote to ``path``: tensors in containers, or anything where the file is ``trusted``.

    Raises:
        SourceError: it would execute code and is not trusted, or lacks its classes, or is damaged.
    """
    foreign = foreign_globals(path)
    if not foreign:
        return load_weights_only(path)
    if not trusted:
        raise SourceError(
            f"{path} is a pickle of {_some(foreign)}, and loading it runs whatever code its maker put into "
            "it; expected weights only: give --trust-pickle if you trust whoever made it, or a state dict "
            "with --model file.py, or a .pt2"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise SourceError(
            f"{path} needs the code of its classes ({error}); expected it to be importable: run svd2onnx "
            "where that code lies, with PYTHONPATH=. if need be, or give a state dict with --model file.py"
        ) from error
    except Exception as error:
        raise SourceError(
            f"{path} cannot be unpickled: {type(error).__name__}: {one_line(error)}; save it again"
        ) from error


def as_network(loaded: Any, path: Path) -> nn.Module:
    """``loaded``, or the network in a checkpoint, in eval mode and float32.

    Raises:
        SourceError: it is none, or a compiled one.
    """
    if isinstance(loaded, Mapping):
        loaded = next((part for part in loaded.values() if isinstance(part, nn.Module)), loaded)
    if isinstance(loaded, torch.jit.ScriptModule):
        raise SourceError(
            f"{path} is a TorchScript network, which cannot be compressed: give the module it was made from"
        )
    if not isinstance(loaded, nn.Module):
        raise SourceError(f"{path} holds {type(loaded).__name__}; expected a torch.nn.Module or a state dict")
    return loaded.float().eval().requires_grad_(False)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more classes or functions" if len(names) > 1 else ""
    own = [
        name for name in names if not name.startswith(("torch.", "builtins.", "__builtin__.", "collections."))
    ]
    return f"{(own or names)[0]}{more}"
