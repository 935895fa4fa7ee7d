"""Tensors of .safetensors files, one or several that an index.json lists."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from svd2onnx.sources.archive import damaged
from svd2onnx.values.errors import SourceError

MOST_INDEX_BYTES = 64 << 20


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of ``path``, on the CPU; the library checks that each lies within the file.

    Raises:
        SourceError: the file is damaged or holds none.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, TypeError, KeyError) as error:
        raise damaged(path, error) from error
    if not tensors:
        raise SourceError(f"{path} holds no tensor; expected weights or samples")
    return tensors


def read_sharded(index: Path) -> dict[str, Tensor]:
    """All tensors of the files that ``index`` (model.safetensors.index.json) lists, which lie beside it.

    Raises:
        SourceError: the index is damaged or names a file elsewhere, or a file lacks a tensor.
    """
    if index.stat().st_size > MOST_INDEX_BYTES:
        raise SourceError(f"{index} is larger than {MOST_INDEX_BYTES} bytes; expected an index of tensors")
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        if (
            not all(isinstance(name, str) and isinstance(file, str) for name, file in places.items())
            or not places
        ):
            raise ValueError("its weight_map is no table of names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise SourceError(
            f"{index} cannot be read ({error}); expected a JSON object with a weight_map from tensors to "
            "files"
        ) from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        path = index.parent / name
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SourceError(f"{index} names the file {name!r}; expected .safetensors files beside it")
        if not path.is_file():
            raise SourceError(
                f"{index} names {name}, which is not in {index.parent}; put all its files there"
            )
        tensors |= read_safetensors(path)
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise SourceError(
            f"{index} lists {missing[0]!r}, which no file holds; expected the files that belong to it"
        )
    return {name: tensors[name] for name in places}
