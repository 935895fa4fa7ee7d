"""An ONNX graph as files: one, or more where its weights lie beside it."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path


def graph_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of an ONNX file and of the external data files that it names.

    A tensor names its file as the protobuf pair {key: "location", value: NAME}; these bytes are
    searched for, which needs no ONNX package and no parsing.
    """
    graph = Path(path)
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        named = {
            content[found.end() : found.end() + found.group(1)[0]].decode("utf-8", "replace")
            for found in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])", content)
        }
    beside = [graph.parent / name for name in named]
    return graph.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())
