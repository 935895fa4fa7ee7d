"""A graph of one layer runs as the layer does in an exported network: with the same fused kernels."""

from dataclasses import replace
from pathlib import Path

import pytest

from svd2onnx.layer_graphs import write_layer_graph
from svd2onnx.schema import LayerForm, QuantSpec
from svd2onnx_runtime import certify, open_session, run, synthetic_inputs

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
