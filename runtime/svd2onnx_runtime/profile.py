"""Run a graph once and tell which nodes onnxruntime executed: what its optimizations made of the file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svd2onnx_runtime.errors import GraphError, one_line
from svd2onnx_runtime.session import (
    Array,
    Session,
    load,
    run,
    session_options,
    synthetic_inputs,
)


@dataclass(frozen=True)
class ExecutedNode:
    """One node of the optimized graph as the profiler saw it, ``provider`` in its long name."""

    op: str
    name: str
    provider: str
    output_shapes: tuple[tuple[int, ...], ...]


def profile(
    path: str | os.PathLike[str],
    provider: str,
    dims: Mapping[str, int],
    inputs: Mapping[str, Array] | None,
) -> tuple[Session, list[ExecutedNode]]:
    """The session and the nodes that one run executed, of ``inputs`` or synthetic ones of sizes ``dims``."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = load(path, options, provider)
        try:
            run(session, synthetic_inputs(session, dims) if inputs is None else inputs)
        finally:
            written = Path(session.end_profiling())  # also closes the file before it is removed
        return session, executed_nodes(read_profile(written))


def read_profile(path: Path) -> list[dict[str, Any]]:
    """The events that onnxruntime wrote.

    Raises:
        GraphError: they are not whole, or hold names that are no text.
    """
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GraphError(
            "onnxruntime's profile of the run cannot be read: the names of the nodes must be plain text, and "
            f"the disk of {path.parent} must have room ({one_line(error)})"
        ) from error
    return events


def executed_nodes(events: Sequence[Mapping[str, Any]]) -> list[ExecutedNode]:
    """The nodes of a profile, in the order in which they ran."""
    return [_executed(event) for event in events if _is_kernel(event)]


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")


def _executed(event: Mapping[str, Any]) -> ExecutedNode:
    args = event["args"]
    # Each output is {element type: shape}.
    shapes: list[list[int]] = [
        next(iter(output.values()), []) for output in args.get("output_type_shape") or ()
    ]
    return ExecutedNode(
        op=args["op_name"],
        name=event["name"].removesuffix("_kernel_time"),
        provider=args.get("provider", ""),
        output_shapes=tuple(map(tuple, shapes)),
    )
