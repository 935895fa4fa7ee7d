"""A graph's inputs and outputs are read as onnxruntime sees them, and what is none is refused in one line."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from svd2onnx.graph.signature import Signature, Tensor, read_signature
from svd2onnx_runtime import GraphError


def graph_of(path: Path, inputs: list[ir.Value], outputs: list[ir.Value]) -> Path:
    """A graph that gives its first input under the name of each output."""
    nodes = [ir.Node("", "Identity", [inputs[0]], outputs=[output]) for output in outputs]
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 21}, name="g")
    ir.save(ir.Model(graph, ir_version=10), path)
    return path


def value(name: str, dtype: ir.DataType, shape: list[int | str | None]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def test_a_signature_is_what_onnxruntime_sees(tmp_path: Path) -> None:
    path = graph_of(
        tmp_path / "a.onnx",
        [
            value("x", ir.DataType.FLOAT, ["batch", 3, None]),
            value("ids", ir.DataType.INT64, ["batch", "sequence"]),
            value("mask", ir.DataType.BOOL, []),
        ],
        [value("y", ir.DataType.FLOAT, ["batch", 3, None])],
    )
    signature = read_signature(path)
    assert signature == Signature(
        (
            Tensor("x", "float32", ("batch", 3, None)),
            Tensor("ids", "int64", ("batch", "sequence")),
            Tensor("mask", "bool", ()),
        ),
        (Tensor("y", "float32", ("batch", 3, None)),),
        21,
        None,
    )
    assert str(signature) == (
        "x float32 [batch, 3, ?], ids int64 [batch, sequence], mask bool [] -> y float32 [batch, 3, ?]"
    )
    assert not signature.is_batched  # because of the mask
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for own, seen in zip(signature.inputs, session.get_inputs(), strict=True):
        assert (own.name, list(own.shape)) == (seen.name, seen.shape)
        assert np.dtype(own.dtype) == np.dtype(
            {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(bool)": "?"}[seen.type]
        )


def test_constants_that_could_be_given_are_no_inputs(tmp_path: Path) -> None:
    x, w = (value(name, ir.DataType.FLOAT, ["batch", 2]) for name in "xw")
    path = graph_of(tmp_path / "a.onnx", [x, w], [value("y", ir.DataType.FLOAT, ["batch", 2])])
    model = ir.load(path)
    constant = model.graph.inputs[1]
    constant.const_value = ir.tensor(np.zeros((1, 2), np.float32), name="w")
    model.graph.initializers.add(constant)
    ir.save(model, path)
    assert [tensor.name for tensor in read_signature(path).inputs] == ["x"]
    assert read_signature(path).is_batched


@pytest.mark.parametrize("content", [b"", b"\x08", b"not a graph", bytes(range(256))], ids=len)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=r"a\.onnx") as failure:
        read_signature(tmp_path / "a.onnx")
    assert "\n" not in str(failure.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="No such file"):
        read_signature(tmp_path / "a.onnx")
    with pytest.raises(GraphError, match="Is a directory"):
        read_signature(tmp_path)


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    x = value("x", ir.DataType.FLOAT, ["batch"])
    path = graph_of(tmp_path / "a.onnx", [x], [ir.Value(name="y")])
    with pytest.raises(GraphError, match="no element type and shape of 'y'"):
        read_signature(path)


@pytest.mark.parametrize(
    ("first", "is_batched"),
    [("batch", True), ("batch_size", True), ("nodes", False), (1, False), (None, False)],
)
def test_requests_are_joined_along_the_axis_of_samples_alone(
    first: int | str | None, is_batched: bool
) -> None:
    rows = Tensor("x", "float32", (first, 3))
    assert Signature((rows,), (rows,), 21, None).is_batched is is_batched
    assert not Signature((rows,), (rows, Tensor("loss", "float32", ())), 21, None).is_batched
