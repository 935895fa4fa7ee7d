"""A graph written byte by byte is what onnx reads, and what onnxruntime runs."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from svd2onnx_runtime import open_session, run
from svd2onnx_runtime.onenode import one_node_graph


def test_onnx_reads_what_was_written() -> None:
    inputs = {"a": np.ones((2, 300), np.uint8), "b": np.ones((300, 3), np.int8)}
    model = onnx.load_from_string(one_node_graph("MatMulInteger", inputs, "int32"))
    (node,) = model.graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("MatMulInteger", ["a", "b"], ["y"])
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert shapes == [[2, 300], [300, 3]]
    assert [value.type.tensor_type.elem_type for value in model.graph.input] == [
        onnx.TensorProto.UINT8,
        onnx.TensorProto.INT8,
    ]
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT32


@pytest.mark.parametrize(("kind", "result"), [("float32", "float32"), ("float16", "float16")])
def test_onnxruntime_runs_it(tmp_path: Path, kind: str, result: str) -> None:
    a, b = (np.arange(6, dtype=kind).reshape(shape) for shape in ((2, 3), (3, 2)))
    path = tmp_path / "product.onnx"
    path.write_bytes(one_node_graph("MatMul", {"a": a, "b": b}, result))
    np.testing.assert_array_equal(run(open_session(path, "cpu"), {"a": a, "b": b})["y"], a @ b)
