"""NNCF's weight compression of ONNX graphs, without data, or with scale estimation, AWQ or GPTQ."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from benchmarks.graphs import linear_nodes
from benchmarks.task import Task


def compress(task: Task, output: Path, *, mode: str, block: int | None = None, **refinement: bool) -> None:
    """Quantize every MatMul with a constant weight.

    Args:
        task: the refinements calibrate on its inputs.
        output: the file to write.
        mode: of ``nncf.CompressWeightsMode``, such as "INT4_SYM".
        block: weights that share a scale; None for a whole channel, as the 8-bit modes need it.
        refinement: ``scale_estimation``, ``awq`` or ``gptq``.
    """
    os.environ["NNCF_CI"] = "1"  # it would report its use to its makers
    import nncf

    nncf.set_log_level("ERROR")
    options: dict[str, Any] = dict(refinement)
    if block is not None:
        options |= {"group_size": block, "ratio": 1.0, "all_layers": True}
    if refinement:
        options |= {"dataset": nncf.Dataset(task.calibration), "subset_size": len(task.calibration)}
    model = nncf.compress_weights(
        onnx.load(task.graph),
        mode=nncf.CompressWeightsMode[mode],
        ignored_scope=nncf.IgnoredScope(names=_others(task), types=["Gather"], validate=False),
        **options,
    )
    onnx.save(model, output)


def _others(task: Task) -> list[str]:
    """The MatMuls that are no Linear of the comparison: a head that shares its weight with a table."""
    graph = ir.load(task.graph).graph
    linear = {node.name for node, _ in linear_nodes(graph)}
    return [str(node.name) for node in graph if node.op_type == "MatMul" and node.name not in linear]
