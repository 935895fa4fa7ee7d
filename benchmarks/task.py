"""What every contender is given: one float32 graph, one set of calibration inputs, one set to judge on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from benchmarks.graphs import linear_nodes, tidy_bytes
from svd2onnx.graph.export import export_float
from svd2onnx.pipeline.preparation import prepare
from svd2onnx.sources.model_file import ModelFile, arguments_of, as_arrays, load_model_file
from svd2onnx.values.settings import Settings

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """``graph`` is the float32 ONNX file of the network in ``source``.

    ``calibration`` holds the graph's inputs, of the very texts that svd2onnx calibrates on. ``kept`` names
    the layers that every contender leaves in float: the embeddings, whose tables have
    ``table_shapes``, and what shares a weight with them. ``linear_weights`` counts the weights that are
    compressed, those that a MatMul holds; ``other_bytes`` are the rest of the file.
    """

    source: Path
    data: Path | None
    graph: Path
    calibration: Sequence[Feed]
    calibration_samples: int
    kept: tuple[str, ...]
    table_shapes: set[tuple[int, ...]]
    linear_weights: int
    other_bytes: int

    @property
    def model_file(self) -> ModelFile:
        """Read anew when asked for, so that a task can be sent to another process."""
        return load_model_file(self.source, self.data)

    def bits_per_weight(self, file_bytes: int) -> float:
        """All bytes of a file that the float graph has not elsewhere, as bits for each Linear weight."""
        return 8 * (file_bytes - self.other_bytes) / self.linear_weights


def load_task(source: Path, data: Path | None, samples: int, graph: Path) -> Task:
    """Load the model file ``source`` and write its float32 graph to ``graph``.

    Raises:
        Svd2OnnxError: the model file cannot be loaded or exported.
    """
    prepared = prepare(source, Settings(calibration_samples=samples), data)
    model, batches = prepared.model, [arguments_of(prepared.model, b) for b in prepared.batches]
    # onnxsim quantizes nothing where no shapes are noted, without an error.
    export_float(model, prepared.example, prepared.dynamic_shapes, graph, with_shapes=True)
    matrices = [weight.const_value for _, weight in linear_nodes(ir.load(graph).graph)]
    linear_weights = sum(math.prod(matrix.shape.numpy()) for matrix in matrices if matrix is not None)
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    usable = [site for site in prepared.sites if site.skip_reason is None]
    kept = [site for site in usable if model.get_submodule(site.name).weight in tables]
    return Task(
        source=source,
        data=data,
        graph=graph,
        calibration=list(unpadded(as_arrays(batch) for batch in batches)),
        calibration_samples=samples,
        kept=tuple(site.name for site in kept),
        table_shapes={site.shape for site in kept},
        linear_weights=linear_weights,
        other_bytes=tidy_bytes(graph) - 4 * linear_weights,
    )


def unpadded(feeds: Iterable[Feed]) -> Iterator[Feed]:
    """The same rows, those of one length together, so that no token is padding.

    svd2onnx leaves padding out of its moments by the "attention_mask"; no peer does, and its second
    moments would be those of padding in good part. No batch has more rows than the largest of ``feeds``.
    Batches without such a mask, or with gaps in it, stay as they are.
    """
    by_length: dict[int, list[Feed]] = {}
    size = 1
    for feed in feeds:
        mask = feed.get("attention_mask")
        if mask is None or mask.ndim != 2 or (np.diff(mask, axis=1) > 0).any():
            yield feed
            continue
        size = max(size, len(mask))
        for row, length in enumerate(mask.sum(axis=1).tolist()):
            real = {name: a[row, :length] if a.shape == mask.shape else a[row] for name, a in feed.items()}
            by_length.setdefault(length, []).append(real)
    for rows in by_length.values():
        for start in range(0, len(rows), size):
            together = rows[start : start + size]
            yield {name: np.stack([row[name] for row in together]) for name in together[0]}
