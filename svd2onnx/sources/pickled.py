"""Pickled modules (torch.save of a whole network).

Loading one runs whatever the file says: it is done only where the user allowed it.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import nn

from svd2onnx.sources.checkpoint import ambiguous, networks_in, preferred, taken
from svd2onnx.sources.pickles import foreign_globals, globals_of, load_weights_only
from svd2onnx.sources.wrappings import unwrapped
from svd2onnx.values.errors import SourceError, one_line

_COMMON = ("torch.", "builtins.", "__builtin__.", "collections.", "_codecs.")
"""Where what says little of a pickle lies."""


def load_pickle(path: Path, *, trusted: bool, script: ModuleType | None = None) -> Any:
    """What torch.save wrote to ``path``: tensors in containers, or anything where the file is ``trusted``.

    Classes of the program that wrote it (``__main__``) are looked up in ``script``.

    Raises:
        SourceError: it would execute code and is not trusted, or lacks its classes, or is damaged.
    """
    foreign = foreign_globals(path)
    if not foreign:
        return load_weights_only(path)
    if not trusted:
        where = " with --model FILE.py, the script that defines them," if needs_script(path) else ""
        raise SourceError(
            f"{path} is a pickle of {_some(foreign)}, and loading it runs whatever code its maker put into "
            f"it; expected weights only: give --trust-pickle{where} if you trust whoever made it, or a state "
            "dict with --model file.py, or a .pt2"
        )
    if script is None and needs_script(path):
        own = [name for name in foreign if name.startswith("__main__.")]
        raise SourceError(
            f"{path} needs {_some(own)} of the script that wrote it; expected --model FILE.py, the file that "
            "defines it"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=False, pickle_module=_pickle_with(script)
            )
    except (ImportError, AttributeError) as error:
        where = (
            f"{script.__file__} to define what was defined in the script that wrote it"
            if script is not None and script.__name__ in str(error)
            else "it to be importable: run svd2onnx where that code lies, with PYTHONPATH=. if need be, or "
            "give a state dict with --model file.py"
        )
        raise SourceError(
            f"{path} needs the code of its classes ({one_line(error)}); expected {where}"
        ) from error
    except Exception as error:
        raise SourceError(
            f"{path} cannot be unpickled: {type(error).__name__}: {one_line(error)}; save it again"
        ) from error


def needs_script(path: Path) -> bool:
    """Whether the file at ``path`` holds objects whose classes lay in the program that wrote it.

    Raises:
        SourceError: it is damaged.
    """
    return any(module == "__main__" for module, _name in globals_of(path))


def as_network(loaded: Any, path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """``loaded``, or the network in a checkpoint, in eval mode and float32; and warnings for the report.

    Raises:
        SourceError: it is none, or TorchScript, or a checkpoint of several that are alike.
    """
    networks = networks_in(loaded)
    notes: tuple[str, ...] = ()
    if networks and not isinstance(loaded, nn.Module):
        own = preferred(list(networks))
        if own is None:
            raise ambiguous(path, list(networks))
        loaded, notes = networks[own], taken(path, own, [other for other in networks if other != own])
    if isinstance(loaded, torch.jit.ScriptModule):
        raise SourceError(
            f"{path} is a TorchScript network, which cannot be compressed: give the module it was made from"
        )
    if not isinstance(loaded, nn.Module):
        raise SourceError(f"{path} holds {type(loaded).__name__}; expected a torch.nn.Module or a state dict")
    return unwrapped(loaded).float().eval().requires_grad_(False), notes


def _pickle_with(script: ModuleType | None) -> Any:
    """Python's pickle, which finds in ``script`` what was defined in ``__main__``."""
    if script is None:
        return pickle

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module != "__main__":
                return super().find_class(module, name)
            found: Any = script
            for part in name.split("."):
                found = getattr(found, part)
            return found

    def load(file: BinaryIO, **arguments: Any) -> Any:
        return Unpickler(file, **arguments).load()

    return SimpleNamespace(Unpickler=Unpickler, load=load, __name__="pickle")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more classes or functions" if len(names) > 1 else ""
    own = [name for name in names if not name.startswith(_COMMON)]
    return f"{(own or names)[0]}{more}"
