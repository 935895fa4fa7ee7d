"""What comes out of a record is what went in: numbers, layout, types; and digests tell values apart."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svd2onnx.calibration.layer_statistics import LayerStatistics, ProbedRows
from svd2onnx.compression.quantize import quantize
from svd2onnx.memo.records import decode, digest, encode
from svd2onnx.planning.candidates import Candidate
from svd2onnx.values.schema import CompressedLayer, LayerForm, QuantSpec


def again(value: object) -> object:
    return decode(*encode(value))


def test_a_compressed_layer_comes_back_with_its_codes() -> None:
    tensor = quantize(torch.randn(8, 64), QuantSpec(4, 32))
    layer = CompressedLayer((8, 64), dense=tensor, bias_shift=torch.randn(8), kind="convolution")
    found = again(layer)
    assert isinstance(found, CompressedLayer)
    assert torch.equal(found.weight(), layer.weight())
    assert found.bias_shift is not None
    assert torch.equal(found.bias_shift, layer.bias_shift)
    assert (found.shape, found.kind, found.form) == (layer.shape, layer.kind, layer.form)


def test_statistics_come_back_in_their_layout_and_shared_tensors_stay_shared() -> None:
    x = torch.randn(6, 4).bfloat16()
    probes = tuple(ProbedRows(x, torch.randn(6, 3), (2, 4), 2) for _ in range(2))
    statistics = {"a": LayerStatistics(6, torch.randn(4).double(), torch.randn(4, 4).T, probes=probes)}
    record, tensors = encode(statistics)
    assert len(tensors) == 5  # mean, covariance, x once, two gradients
    found = decode(record, tensors)["a"]
    assert found.covariance.stride() == (1, 4)
    assert torch.equal(found.covariance, statistics["a"].covariance)
    assert torch.equal(found.probes[1].x, x)
    assert found.probes[0].lengths == (2, 4)


def test_candidates_come_back_equal() -> None:
    priced = [
        Candidate(None, 100, 0.0),
        Candidate(LayerForm(QuantSpec(4, 32), 8, QuantSpec(4, 32), "int8"), 20, 0.1 + 0.2, 1.5),
    ]
    assert again(priced) == priced


def test_parts_of_a_tensor_are_kept_alone() -> None:
    whole = torch.arange(1000.0)
    found = again(whole[10:20:3])
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [10, 13, 16, 19]
    assert encode(whole[10:20:3])[1][0].untyped_storage().nbytes() == 16


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", LayerForm])
def test_what_no_record_holds_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no record can hold"):
        encode(value)


def test_a_record_makes_nothing_but_values_of_the_compressor() -> None:
    with pytest.raises(KeyError):
        decode(json.dumps({"is": "Popen", "args": "true"}), [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_plain_values_come_back_equal(value: object) -> None:
    assert again(value) == value
    assert digest(value) == digest(again(value))


def test_digests_tell_values_apart() -> None:
    values = [
        (1, 2), [1, 2], 1, 1.0, "1", None, (1, (2,)), {"a": 1}, {"a": "1"}, {1: "a"},
        torch.ones(4), torch.ones(2, 2), torch.ones(4).double(), torch.zeros(4), -torch.zeros(4),
        LayerForm(QuantSpec(4, 32)), QuantSpec(4, 32),
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
    assert digest(1, (2, 3)) != digest((1, 2), 3)
