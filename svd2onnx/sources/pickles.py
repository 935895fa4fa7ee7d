"""Files of torch.save: what their pickle would call is listed without running it, and tensors are bounded.

A pickle is a program. PyTorch's weights-only unpickler runs none of it but what makes tensors and
containers; here that is narrowed further, to the list below, so that a file which wants more is named for
what it is before anything is read.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd2onnx.sources.archive import damaged, open_archive
from svd2onnx.values.errors import SourceError

_DTYPES = (
    "Double Float Half Long Int Short Char Byte Bool BFloat16 ComplexDouble ComplexFloat QUInt8 QInt8 "
    "QInt32 Untyped"
).split()
_HARMLESS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.parameter", "Parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
    *(("torch", f"{name}Storage") for name in _DTYPES),
    *(
        ("torch", name)
        for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    ),
}
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_PUTS = {"MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}
_LEGACY = 0x1950A86A20F9469CFC6C
"""The number in the pickle that opens files of PyTorch before 1.6."""
_UNREADABLE = (ValueError, IndexError, KeyError, EOFError, OverflowError, UnicodeError, MemoryError)


def globals_of(path: Path) -> set[tuple[str, str]]:
    """Every class and function, as (module, name), that loading the file at ``path`` would look up.

    Raises:
        SourceError: it is no sound file of torch.save.
    """
    found: set[tuple[str, str]] = set()
    for pickle in _pickles(path):
        try:
            found |= set(_globals(pickle))
        except _UNREADABLE as error:
            raise damaged(path, error) from error
    return found


def foreign_globals(path: Path) -> list[str]:
    """Those of ``globals_of`` that are more than tensors and containers, such as ``shop.models.Network``."""
    return sorted(".".join(found) for found in globals_of(path) - _HARMLESS)


def load_weights_only(path: Path, what: Any = None) -> Any:
    """What torch.save wrote to ``path``: containers of tensors, on the CPU; ``what`` is read in its place.

    Raises:
        SourceError: the file is damaged, would execute something, or has tensors larger than their storage.
    """
    foreign = foreign_globals(path)
    if foreign:
        raise SourceError(f"{path} would execute code of {foreign[0]}; expected tensors and nothing else")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapped = what is None and zipfile.is_zipfile(path)  # read when needed: it may be large
            loaded = torch.load(what or path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise damaged(path, error) from error
    check_storages(path, loaded)
    return loaded


def check_storages(path: Path, loaded: Any) -> None:
    """A tensor may claim a shape of more elements than are stored; copying it would then fill the memory.

    Raises:
        SourceError: there is such a tensor.
    """
    for name, tensor in tensors_in(loaded):
        needed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if tensor.layout == torch.strided and tensor.device.type == "cpu" and needed <= stored:
            continue
        raise SourceError(
            f"{path}: the tensor {name!r} {list(tensor.shape)} takes {needed} bytes and {stored} are stored; "
            "expected dense tensors on the CPU: save them with .contiguous()"
        )


def tensors_in(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, with the way to each; a pickle can hold a list that holds itself."""
    waiting, seen = [("", loaded)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), entry) for key, entry in entries]


def _pickles(path: Path) -> Iterator[bytes]:
    """The pickles of a file: one in an archive, or several one after the other in older files."""
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive:
        with open_archive(path) as archive:
            yield archive.read("data.pkl")
        return
    with path.open("rb") as file:
        for index in range(5):  # a number, the version, the system, the object, the keys of its storages
            start = file.tell()
            try:
                arguments = [argument for _opcode, argument, _position in pickletools.genops(file)]
            except _UNREADABLE as error:
                raise damaged(path, error) from error
            end = file.tell()
            file.seek(start)
            yield file.read(end - start)
            if index == 0 and _LEGACY not in arguments:
                return


def _globals(pickle: bytes) -> Iterator[tuple[str, str]]:
    """What a pickle looks up: GLOBAL names it, STACK_GLOBAL takes two strings, maybe from the memo."""
    recent: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _position in pickletools.genops(pickle):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif opcode.name == "STACK_GLOBAL":
            module, name = recent[-2:]
            yield module, name
        elif opcode.name in ("EXT1", "EXT2", "EXT4"):
            yield "copyreg", f"extension {argument}"
        elif opcode.name in _STRINGS:
            recent.append(str(argument))
        elif opcode.name in _PUTS:
            memo[len(memo) if argument is None else int(argument)] = recent[-1] if recent else ""
        elif opcode.name in _GETS:
            recent.append(memo.get(int(str(argument)), ""))
