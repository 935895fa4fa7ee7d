"""What one run of a graph has to compute and to move at least, counted on the nodes that it executes.

    operations   2 x elements of the output x length of the sum   for every matrix product and convolution
    bytes        the constants that each node reads, the graph's inputs and its outputs

The graph is run once under onnxruntime's profiler, which tells the shapes and the bytes of each
node's inputs. Weights are left as they are stored (``session.disable_prepacking``), because a packed
one is not told. A table that rows are gathered from counts with those rows. What is not counted
only adds to a run: sums, what goes from node to node, and the products inside a node that does a whole
attention.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd2onnx_runtime.profile import read_profile
from svd2onnx_runtime.session import (
    Array,
    graph_inputs,
    load,
    provider_name,
    provider_of,
    run,
    session_options,
)

_PRODUCTS = ("MatMul", "Gemm")  # as parts of names: FusedMatMul, MatMulNBits, DynamicQuantizeMatMul
_GATHERS = ("Gather", "GatherND", "GatherElements")


@dataclass(frozen=True)
class Work:
    """The least work of one run: ``operations`` (a multiply-add is two) and bytes moved.

    ``elsewhere`` names the operators that ran on another provider than the session's, each once.
    """

    operations: int
    moved_bytes: int
    elsewhere: tuple[str, ...]


def count_work(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Array],
    provider: str = "auto",
    threads: int | None = None,
) -> Work:
    """Run the graph at ``path`` once on ``inputs`` and count; errors are those of ``run``."""
    options = session_options(threads)
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = load(path, options, provider)
        feeds = graph_inputs(session, inputs)
        try:
            outputs = run(session, feeds)
        finally:
            profile = Path(session.end_profiling())  # also closes the file before it is removed
        nodes = list(_nodes(read_profile(profile)))
    wanted = provider_name(provider_of(session))
    return Work(
        operations=sum(_operations(node) for node in nodes),
        moved_bytes=sum(_constant_bytes(node) for node in nodes)
        + sum(array.nbytes for array in (*feeds.values(), *outputs.values())),
        elsewhere=tuple(sorted({node["op_name"] for node in nodes if node.get("provider") != wanted})),
    )


def _nodes(events: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What the profiler tells of each executed node."""
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            yield event["args"]


def _operations(node: Mapping[str, Any]) -> int:
    op = node["op_name"]
    if any(name in op for name in _PRODUCTS):
        (rows, *_), (output, *_) = _shapes(node["input_type_shape"]), _shapes(node["output_type_shape"])
        return 2 * math.prod(output) * rows[-1]
    if "Conv" in op and "Transpose" not in op:
        (_, weight, *_), (output, *_) = _shapes(node["input_type_shape"]), _shapes(node["output_type_shape"])
        return 2 * math.prod(output) * math.prod(weight[1:])
    return 0


def _shapes(types: Sequence[Mapping[str, Sequence[int]]]) -> list[Sequence[int]]:
    """[{"float": [8, 64]}, ...] -> [[8, 64], ...]."""
    return [next(iter(entry.values()), ()) for entry in types]


def _constant_bytes(node: Mapping[str, Any]) -> int:
    constants, output = int(node.get("parameter_size", 0)), int(node.get("output_size", 0))
    return min(constants, output) if node["op_name"] in _GATHERS else constants
