"""What of an exported program is handed to torch.export.load: a copy, made of what was checked.

PyTorch says of its loader never to use it on untrusted files: it unpickles, runs compiled libraries, and
evaluates strings. The copy has the graph (see ``program_text``), its weights and constants as bytes, and
example inputs that the weights-only unpickler reads. Python's reader of archives and PyTorch's may see
different things in a crafted file; in the copy there is one thing to see.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from svd2onnx.sources.archive import Archive, open_archive
from svd2onnx.sources.pickles import load_weights_only
from svd2onnx.sources.program_text import Unsafe, check_tensor_name, cleaned
from svd2onnx.values.errors import SourceError

MODEL = "model"
"""The name that torch.export.save gives the one program of a file."""
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 2,
    7: 4,
    8: 8,
    9: 4,
    10: 8,
    11: 16,
    12: 1,
    13: 2,
    28: 2,
    29: 1,
    30: 1,
}
"""Of an element, by the number that the format gives its type."""


@contextlib.contextmanager
def safe_copy(path: Path) -> Iterator[IO[bytes]]:
    """A file with what ``path`` holds of a program, and nothing that could run or leave its bounds.

    Raises:
        SourceError: it holds what is not safe, or is damaged.
    """
    with open_archive(path) as archive, tempfile.TemporaryFile() as file:
        try:
            with zipfile.ZipFile(file, "w") as copy:
                for name, content in _checked(archive):
                    copy.writestr(f"{MODEL}/{name}", content)
        except Unsafe as error:
            raise SourceError(
                f"{path} is not loaded, because {error}; expected a graph of PyTorch's own operators: export "
                "the network as such, or write a model file (.py)"
            ) from error
        file.seek(0)
        yield file


def _checked(archive: Archive) -> Iterator[tuple[str, bytes]]:
    programs = [name for name in archive.members if name.startswith("models/") and name.endswith(".json")]
    if programs != [f"models/{MODEL}.json"]:
        raise Unsafe(f"it holds {len(programs)} programs under other names than {MODEL!r}")
    yield f"models/{MODEL}.json", json.dumps(cleaned(archive.json(programs[0]))).encode()
    for kind in ("weights", "constants"):
        table = f"data/{kind}/{MODEL}_{kind}_config.json"
        entries = _entries(archive.json(table), archive, kind)
        yield table, json.dumps({"config": entries}).encode()
        for name in sorted({entry["path_name"] for entry in entries.values()}):
            yield f"data/{kind}/{name}", archive.read(f"data/{kind}/{name}")
    examples = f"data/sample_inputs/{MODEL}.pt"
    yield examples, _checked_examples(archive.read(examples))
    for name in ("archive_format", "archive_version", "byteorder", ".data/version"):
        if name in archive.members:
            yield name, archive.read(name)


def _entries(table: Any, archive: Archive, kind: str) -> dict[str, dict[str, Any]]:
    entries = table.get("config") if isinstance(table, dict) else None
    if not isinstance(entries, dict):
        raise Unsafe(f"its table of {kind} is none")
    return {name: _entry(name, entry, archive, kind) for name, entry in entries.items()}


def _entry(name: str, entry: Any, archive: Archive, kind: str) -> dict[str, Any]:
    check_tensor_name(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str):
        raise Unsafe(f"the entry of {name!r} among its {kind} is none")
    if entry.get("use_pickle") is not False or not isinstance(entry.get("tensor_meta"), dict):
        raise Unsafe(f"{name!r} among its {kind} is a pickled object and no plain tensor")
    member = archive.members.get(f"data/{kind}/{entry['path_name']}")
    if member is None or "/" in entry["path_name"] or entry["path_name"].endswith(".json"):
        raise Unsafe(f"the bytes of {name!r} are missing among its {kind}")
    meta = cleaned(entry["tensor_meta"])
    sizes: list[Any] = [
        size.get("as_int") if isinstance(size, dict) else None for size in _list(meta.get("sizes"))
    ]
    itemsize = _BYTES.get(meta.get("dtype")) if isinstance(meta.get("dtype"), int) else None
    if itemsize is None or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise Unsafe(f"the shape or type of {name!r} among its {kind} is unknown")
    if math.prod(sizes) * itemsize > member.file_size:
        raise Unsafe(f"{name!r} claims the shape {sizes} and {member.file_size} bytes are stored")
    return {**entry, "tensor_meta": meta}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _checked_examples(pickle: bytes) -> bytes:
    """Example inputs, where they are tensors; others are left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.pt"
        path.write_bytes(pickle)
        try:
            load_weights_only(path)
        except SourceError:
            return b""
    return io.BytesIO(pickle).getvalue()
