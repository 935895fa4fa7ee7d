"""The folder that travels to a GPU machine: graphs, evaluation inputs, and manifest.json that names them.

``benchmarks.gpu_graphs`` writes it where torch is, and ``benchmarks.gpu`` reads it where torch is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MANIFEST = "manifest.json"
BOTH = ("cpu", "cuda")


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its ``file`` in the folder, what it is in words, and the providers it is meant for."""

    name: str
    file: str
    what: str
    providers: tuple[str, ...] = BOTH


@dataclass(frozen=True)
class Manifest:
    """``graphs``, the float32 reference first; ``batches`` are .npz files of inputs by name."""

    source: str
    objective: str
    graphs: tuple[GraphEntry, ...]
    batches: tuple[str, ...]

    def write(self, folder: Path) -> None:
        (folder / _MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def inputs(self, folder: Path) -> Iterator[dict[str, NDArray[Any]]]:
        """The evaluation inputs, batch by batch."""
        for file in self.batches:
            with np.load(folder / file) as arrays:
                yield dict(arrays)


def read_manifest(folder: Path) -> Manifest:
    """What ``Manifest.write`` wrote to ``folder``."""
    record = json.loads((folder / _MANIFEST).read_text())
    graphs = [GraphEntry(**{**entry, "providers": tuple(entry["providers"])}) for entry in record["graphs"]]
    return Manifest(record["source"], record["objective"], tuple(graphs), tuple(record["batches"]))
