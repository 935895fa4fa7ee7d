"""A graph of one layer runs as the layer does in an exported network: with the same fused kernels."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from svd2onnx.latency.convolution_graphs import write_convolution_graph
from svd2onnx.latency.layer_graphs import write_layer_graph
from svd2onnx.network.convolution import geometry_of
from svd2onnx.values.schema import LayerForm, QuantSpec
from svd2onnx_runtime import certify, open_session, run, synthetic_inputs
from svd2onnx_runtime.profile import profile

SPEC = QuantSpec(4, 32)
LINEAR = [
    None,
    LayerForm(),
    LayerForm(QuantSpec(8, 128)),
    LayerForm(SPEC),
    LayerForm(QuantSpec(2, 64)),
    LayerForm(rank=32, factors=SPEC),
    LayerForm(QuantSpec(2, 64), 32, SPEC),
]
MATMULS = [0, 0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize(("form", "matmuls"), list(zip(LINEAR, MATMULS, strict=True)), ids=str)
def test_a_linear_layer_in_every_form(
    form: LayerForm | None, matmuls: int, activations: str, tmp_path: Path
) -> None:
    path = tmp_path / "layer.onnx"
    if form is not None and form.specs:
        form = replace(form, activations=activations)
    write_layer_graph(path, "linear", (96, 80), (2, 5), form, copies=3)
    certificate = certify(path, "cpu")
    assert certificate.ok, certificate.unfused
    assert certificate.planned == 3 * matmuls
    session = open_session(path, "cpu")
    inputs = synthetic_inputs(session, {})
    if matmuls or form is None:
        assert [array.shape for array in inputs.values()] == [(2, 5, 80)] * 3
        assert [array.shape for array in run(session, inputs).values()] == [(2, 5, 96)] * 3


@pytest.mark.parametrize("form", [None, LayerForm(SPEC), LayerForm(QuantSpec(8, 64))], ids=str)
def test_a_table(form: LayerForm | None, tmp_path: Path) -> None:
    path = tmp_path / "table.onnx"
    write_layer_graph(path, "embedding", (100, 64), (2, 5), form)
    session = open_session(path, "cpu")
    (output,) = run(session, synthetic_inputs(session, {})).values()
    assert output.shape == (2, 5, 64)


@pytest.mark.parametrize("rank", [0, 4], ids=["one", "pair"])
def test_a_convolution_and_a_pair(rank: int, tmp_path: Path) -> None:
    module = nn.Conv2d(6, 10, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    path = tmp_path / "convolution.onnx"
    write_convolution_graph(path, geometry_of(module), (10, 90), (2, 6, 9, 13), rank, copies=2)
    session = open_session(path, "cpu")
    outputs = run(session, synthetic_inputs(session, {}))
    expected = module(torch.zeros(2, 6, 9, 13)).shape
    assert [output.shape for output in outputs.values()] == [expected] * 2
    weights = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    assert weights == 2 * ([(4, 6, 3, 5), (10, 4, 1, 1)] if rank else [(10, 6, 3, 5)])


def test_a_grouped_convolution(tmp_path: Path) -> None:
    module, path = nn.Conv1d(8, 8, 3, groups=4), tmp_path / "grouped.onnx"
    write_convolution_graph(path, geometry_of(module), (8, 6), (1, 8, 12), 0, 1)
    session = open_session(path, "cpu")
    (output,) = run(session, synthetic_inputs(session, {})).values()
    assert output.shape == (1, 8, 10)


@pytest.mark.parametrize("rank", [0, 4], ids=["one", "pair"])
def test_a_convolution_in_int8_has_no_hop_to_float(rank: int, tmp_path: Path) -> None:
    module = nn.Conv2d(6, 10, 3, padding=1)
    path = tmp_path / "int8.onnx"
    write_convolution_graph(path, geometry_of(module), (10, 54), (2, 6, 9, 13), rank, copies=2, int8=True)
    executed = [node.op for node in profile(path, "cpu", {}, None)[1]]
    assert executed.count("QLinearConv") == (4 if rank else 2)
    assert set(executed) <= {"QLinearConv", "Transpose"}  # to the order of axes of these kernels
