"""Stored bytes are the real ones, forms survive JSON, and specifications that cannot be are refused."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svd2onnx.compression.quantize import quantize
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import BITS, BLOCK_SIZES, CompressedLayer, LayerForm, LayerSite, QuantSpec

specs = st.builds(QuantSpec, st.sampled_from(BITS), st.sampled_from(BLOCK_SIZES))
forms = st.one_of(
    st.builds(LayerForm, dense=st.none() | specs),
    st.builds(LayerForm, dense=st.none() | specs, rank=st.integers(1, 4096), factors=specs),
)


@settings(deadline=None, max_examples=30)
@given(specs, st.integers(1, 70), st.integers(1, 300))
def test_bytes_of_a_spec_are_those_of_its_codes_and_scales(spec: QuantSpec, rows: int, columns: int) -> None:
    torch.manual_seed(rows * 1000 + columns)
    tensor = quantize(torch.randn(rows, columns), spec)
    assert tensor.scale.dtype == torch.int8
    assert tensor.unit is not None
    units = tensor.unit.numpy().nbytes
    assert tensor.stored_bytes == spec.stored_bytes(rows, columns) + units
    packed = -(-rows * columns * spec.bits // 8)
    assert tensor.stored_bytes == packed + tensor.scale.numpy().nbytes + units


@given(specs, st.integers(1, 8), st.integers(1, 600))
def test_blocks_cover_all_columns_and_no_block_is_empty(spec: QuantSpec, rows: int, columns: int) -> None:
    blocks = spec.blocks(columns)
    assert (blocks - 1) * spec.block_size < columns <= blocks * spec.block_size


@given(forms)
def test_a_form_survives_json(form: LayerForm) -> None:
    assert LayerForm.from_json(json.loads(json.dumps(form.to_json()))) == form


@given(forms, st.integers(16, 512), st.integers(16, 512))
def test_a_form_takes_the_bytes_of_its_terms(form: LayerForm, rows: int, columns: int) -> None:
    expected = form.dense.stored_bytes(rows, columns) if form.dense else 0
    if form.factors:
        expected += form.factors.stored_bytes(rows, form.rank) + form.factors.stored_bytes(form.rank, columns)
    assert form.stored_bytes((rows, columns)) == expected


def test_the_layer_knows_the_form_that_made_it() -> None:
    torch.manual_seed(0)
    spec, other = QuantSpec(4, 32), QuantSpec(8, 16)
    dense = quantize(torch.randn(40, 64), spec)
    left, right = quantize(torch.randn(40, 16), other), quantize(torch.randn(16, 64), other)
    layer = CompressedLayer((40, 64), dense, left, right)
    assert layer.form == LayerForm(dense=spec, rank=16, factors=other)
    units = sum(part.unit.nbytes for part in (layer.dense, layer.left, layer.right))
    assert layer.stored_bytes == layer.form.stored_bytes((40, 64)) + units
    product = left.dequantize().double() @ right.dequantize().double()
    torch.testing.assert_close(layer.weight().double(), dense.dequantize() + product, rtol=0, atol=1e-5)


def test_a_layer_without_terms_stands_for_zero() -> None:
    layer = CompressedLayer((3, 5))
    assert layer.form == LayerForm()
    assert layer.stored_bytes == 0
    assert torch.equal(layer.weight(), torch.zeros(3, 5))


@pytest.mark.parametrize("bits", [0, 1, 3, 16])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(PlanError, match=f"^bits must be one of .*, not {bits}$"):
        QuantSpec(bits, 32)


@pytest.mark.parametrize("block_size", [0, 8, 48, 512])
def test_block_sizes_that_do_not_fuse_are_refused(block_size: int) -> None:
    with pytest.raises(PlanError, match=f"^block size must be one of .*, not {block_size}$"):
        QuantSpec(4, block_size)


@pytest.mark.parametrize("arguments", [{"rank": 16}, {"factors": QuantSpec(4, 32)}], ids=["rank", "factors"])
def test_half_a_pair_is_refused(arguments: dict) -> None:
    with pytest.raises(PlanError, match="needs both a rank and the bits of its factors"):
        LayerForm(**arguments)


def test_activations_are_no_part_of_what_is_stored() -> None:
    form = LayerForm(QuantSpec(4, 32), 16, QuantSpec(8, 64), activations="int8")
    assert form.stored == LayerForm(QuantSpec(4, 32), 16, QuantSpec(8, 64))
    assert form.stored_bytes((64, 96)) == form.stored.stored_bytes((64, 96))
    assert str(form) == f"{form.stored}, int8 activations"
    assert LayerForm.from_json(form.to_json()) == form
    with pytest.raises(PlanError, match="activations must be one of"):
        LayerForm(QuantSpec(4, 32), activations="int4")
    table = LayerSite("table", "embedding", (100, 64))
    assert (
        replace(form, rank=0, factors=None).problem_with(table)
        == "a table is looked up and multiplies nothing"
    )


def test_a_form_with_unknown_parts_is_refused() -> None:
    with pytest.raises(PlanError, match="not \\['sparse'\\]"):
        LayerForm.from_json({"dense": {"bits": 4, "block_size": 32}, "sparse": 0.5})


def test_a_table_is_stored_once_and_a_weight_once_for_each_call() -> None:
    assert LayerSite("a", "embedding", (100, 64), calls=3).copies == 1
    assert LayerSite("a", "linear", (100, 64), calls=3).copies == 3
