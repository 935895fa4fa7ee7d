"""The files beside a graph that hold its weights, and the check that they lie beside it.

A tensor names its file as the protobuf pair {key: "location", value: NAME}; these bytes are searched for,
which needs no ONNX package and no parsing, and reads no weight. A pair that is written the other way round
is not found here; onnxruntime itself refuses what leaves the folder too.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from svd2onnx_runtime.errors import GraphError

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")
"""The length of a name follows, as a varint of one or two bytes."""


def external_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that the graph at ``path``, which is not empty, keeps tensors in; they need not exist.

    Raises:
        GraphError: one is not in the graph's folder, or below it.
    """
    graph = Path(path)
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = {
            content[found.end() : found.end() + _varint(found[1])].decode("utf-8", "replace")
            for found in _LOCATION.finditer(content)
        }
    return [_beside(graph, name) for name in sorted(names)]


def graph_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of an ONNX file and of the external data files it names; GraphError if one lies elsewhere."""
    files = [Path(path), *external_files(path)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _beside(graph: Path, name: str) -> Path:
    folder = graph.parent.resolve()
    try:
        # Resolved, because a link may lead away too.
        inside = (folder / name).resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):  # a name that no system has, or a circle of links
        inside = False
    if not inside:
        raise GraphError(
            f"{graph} keeps weights in {name!r}, outside of its own folder, which is not allowed: "
            "put the file beside the graph and export it again"
        )
    return graph.parent / name


def _varint(raw: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(raw))
