"""Whether svd2onnx wrote a file that a command is about to replace.

ONNX files are told by their metadata. Those lie behind gigabytes of weights; a protobuf message is a sequence
of fields that tell their lengths, so that the weights are skipped and not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from svd2onnx.values.errors import OutputError

_MADE_HERE = b"svd2onnx."
"""How the keys of our metadata begin."""
_METADATA, _KEY = 14, 1
"""The fields ModelProto.metadata_props and StringStringEntryProto.key of ONNX."""
_KIND_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LARGEST_ENTRY = 1 << 20
_PAGE = re.compile(rb"<title>[^<]*svd2onnx[^<]*</title>")


def check_replaceable(output: Path, reference: Path | None, page: Path | None) -> None:
    """What compress-export is to write replaces no file of someone else's.

    Raises:
        OutputError: it would.
    """
    if not _may_go(output, is_our_graph):
        raise _taken(output, "-o")
    if reference is not None and not _may_go(reference, lambda path: _is_float_graph(path, output)):
        raise _taken(reference, "--reference")
    if page is not None and not _may_go(page, is_our_page):
        raise _taken(page, "--report")


def _may_go(path: Path, is_ours: Callable[[Path], bool]) -> bool:
    return not path.is_file() or is_ours(path)


def _taken(path: Path, option: str) -> OutputError:
    return OutputError(
        f"{path} is there already, and svd2onnx did not write it: name another file with {option}, "
        "or give --overwrite to replace it"
    )


def is_our_graph(path: Path) -> bool:
    """Whether ``path`` is an ONNX file with metadata of svd2onnx."""
    try:
        with path.open("rb") as file:
            return any(
                key.startswith(_MADE_HERE)
                for entry in _fields(file, path.stat().st_size, _METADATA)
                for key in _keys(entry)
            )
    except (OSError, ValueError):
        return False


def is_our_page(path: Path) -> bool:
    """Whether ``path`` is a report as HTML."""
    with path.open("rb") as file:
        return _PAGE.search(file.read(4096)) is not None


def _is_float_graph(path: Path, output: Path) -> bool:
    """Whether ``path`` is one of our graphs, or a float32 graph that a report tells of by its size.

    A float32 graph has no metadata of ours: its bytes are what sizes are measured by.
    """
    if is_our_graph(path):
        return True
    weights = path.with_name(f"{path.name}.data")
    size = path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)
    reports = [Path(f"{output}.report.json"), *path.parent.glob("*.report.json")]
    return size in _float_sizes(reports)


def _float_sizes(reports: Iterable[Path]) -> set[int]:
    sizes = set()
    for path in reports:
        try:
            record = json.loads(path.read_bytes())
            if record["format"].startswith("svd2onnx-report/"):
                sizes.add(record["float_bytes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # none of ours
    return sizes


def _keys(entry: bytes) -> Iterable[bytes]:
    return _fields(BytesIO(entry), len(entry), _KEY)


def _fields(file: BinaryIO, size: int, wanted: int) -> Iterable[bytes]:
    """The contents of the fields ``wanted`` of the protobuf message in ``file``, of ``size`` bytes.

    Raises:
        ValueError: it is no such message.
    """
    while file.tell() < size:
        number, kind = divmod(_varint(file), 8)
        if kind == _KIND_VARINT:
            _varint(file)
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if length is None:
            if kind != _LENGTH:
                raise ValueError(f"no field has the type {kind}")
            length = _varint(file)
        if file.tell() + length > size:
            raise ValueError("a field ends behind the file")
        if number == wanted and kind == _LENGTH and length <= _LARGEST_ENTRY:
            yield file.read(length)
        else:
            file.seek(length, 1)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("no number")
