"""What is done alike to every file before it is weighed."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.graphs import float_shapes, linear_nodes, tidy
from benchmarks.task import Task


def test_tidy_strips_weights_and_nodes_that_lead_nowhere_and_notes(task: Task, tmp_path: Path) -> None:
    model = ir.load(task.graph)
    dead = ir.Tensor(np.ones((50, 70), np.float32), name="dead")
    value = ir.Value(name="dead", shape=dead.shape, type=ir.TensorType(dead.dtype), const_value=dead)
    model.graph.register_initializer(value)
    model.graph.append(ir.node("Relu", [value], name="leads nowhere"))
    next(iter(model.graph)).metadata_props["pkg.note"] = "n" * 500
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    assert path.stat().st_size > task.graph.stat().st_size + 4 * 50 * 70
    tidy(path)
    assert path.stat().st_size == task.other_bytes + 4 * task.linear_weights < task.graph.stat().st_size
    assert not onnx.load(path).graph.value_info
    assert (50, 70) not in float_shapes(path)


def test_linear_nodes_are_the_matmuls_with_a_stored_matrix(task: Task) -> None:
    shapes = [tuple(weight.shape.numpy()) for _, weight in linear_nodes(ir.load(task.graph).graph)]
    assert shapes == [(64, 128), (128, 64)]
