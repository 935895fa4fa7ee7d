"""Truncated SVD of every Linear with float16 factors: what low rank alone does.

MatMul(x, W)  =>  MatMul(MatMul(x, Cast(U_k)), Cast(S_k V_k^T))      rank k by the share of parameters
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.graphs import initializer, linear_nodes
from benchmarks.task import Task


def compress(task: Task, output: Path, *, share: float) -> None:
    """Keep ``share`` of each layer's parameters, 0 to 1: k (in + out) = share in out."""
    model = ir.load(task.graph)
    for node, weight in linear_nodes(model.graph):
        assert weight.const_value is not None
        matrix = weight.const_value.numpy()
        rank = max(1, int(share * matrix.size / sum(matrix.shape)))
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        first = _factor(model.graph, node, f"{weight.name}.u", u[:, :rank])
        second = _factor(model.graph, node, f"{weight.name}.svt", s[:rank, None] * vt[:rank])
        inner = ir.node("MatMul", [node.inputs[0], first], name=f"{node.name}.first")
        inner.outputs[0].name = f"{weight.name}.inner"
        model.graph.insert_before(node, inner)
        node.replace_input_with(0, inner.outputs[0])
        node.replace_input_with(1, second)
    ir.save(model, output)


def _factor(graph: ir.Graph, node: ir.Node, name: str, matrix: np.ndarray) -> ir.Value:
    """Store ``matrix`` as float16 and return it as float32, by a Cast that onnxruntime folds at load."""
    value = initializer(graph, name, ir.Tensor(np.ascontiguousarray(matrix, np.float16), name=name))
    cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{name}/Cast")
    cast.outputs[0].name = f"{name}.float32"
    graph.insert_before(node, cast)
    return cast.outputs[0]
