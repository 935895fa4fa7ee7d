"""config.pbtxt says what was meant, by the published schema, whatever the graph takes and gives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svd2onnx.deployment.triton import Serving, config_text, first_request
from svd2onnx.graph.signature import Signature, Tensor
from svd2onnx.values.errors import OutputError
from svd2onnx_runtime import GraphError
from tests.svd2onnx.triton_schema import assert_valid, parsed, schema, shape_of

TEXTS = Signature(
    inputs=(
        Tensor("ids", "int64", ("batch", "sequence")),
        Tensor("mask", "bool", ("batch", "sequence")),
        Tensor("weight", "float32", ("batch",)),
    ),
    outputs=(Tensor("vector", "float32", ("batch", 384)), Tensor("score", "float16", ("batch",))),
    opset=21,
    made_by="0.1.0",
)
SERVING = Serving("texts", "cpu", max_batch=16, instances=2, threads=3)


def test_a_batched_model_on_cpus() -> None:
    config = parsed(config_text(TEXTS, SERVING))
    assert_valid(config)
    expected = schema.ModelConfig(
        name="texts",
        backend="onnxruntime",
        max_batch_size=16,
        input=[
            {"name": "ids", "data_type": "TYPE_INT64", "dims": [-1]},
            {"name": "mask", "data_type": "TYPE_BOOL", "dims": [-1]},
            {"name": "weight", "data_type": "TYPE_FP32", "dims": [1], "reshape": {}},
        ],
        output=[
            {"name": "vector", "data_type": "TYPE_FP32", "dims": [384]},
            {"name": "score", "data_type": "TYPE_FP16", "dims": [1], "reshape": {}},
        ],
        instance_group=[{"count": 2, "kind": "KIND_CPU"}],
        dynamic_batching={},
        optimization={"graph": {"level": 0}},
        parameters={"intra_op_thread_count": {"string_value": "3"}},
    )
    assert config == expected


def test_a_model_on_gpus_is_warmed_up() -> None:
    serving = replace(SERVING, provider="cuda", threads=None, sizes={"batch": 1, "sequence": 64})
    config = parsed(config_text(TEXTS, serving))
    assert_valid(config)
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, 1)]  # KIND_GPU
    assert not config.parameters
    (warm_up,) = config.model_warmup
    assert warm_up.batch_size == 1
    assert {name: list(own.dims) for name, own in warm_up.inputs.items()} == {
        "ids": [64],
        "mask": [64],
        "weight": [1],
    }
    assert all(own.zero_data for own in warm_up.inputs.values())
    request = first_request(TEXTS, serving)
    assert request is not None
    assert {name: (own.shape, str(own.dtype)) for name, own in request.items()} == {
        "ids": ((1, 64), "int64"),
        "mask": ((1, 64), "bool"),
        "weight": ((1,), "float32"),
    }
    assert not any(np.any(own) for own in request.values())


def test_there_is_no_warm_up_where_a_size_is_unknown() -> None:
    serving = replace(SERVING, provider="cuda", sizes={"batch": 1})
    assert not parsed(config_text(TEXTS, serving)).model_warmup
    assert first_request(TEXTS, serving) is None


@pytest.mark.parametrize(
    "outputs",
    [
        (Tensor("flat", "float32", ("batch*sequence", 384)),),
        (Tensor("vector", "float32", ("batch", 384)), Tensor("loss", "float32", ())),
        (Tensor("swapped", "float32", ("sequence", "batch")),),
        (Tensor("fixed", "float32", (1, 384)),),
    ],
    ids=lambda outputs: outputs[-1].name,
)
def test_batches_are_not_made_where_an_output_has_none(outputs: tuple[Tensor, ...]) -> None:
    signature = replace(TEXTS, outputs=outputs)
    config = parsed(config_text(signature, SERVING))
    assert_valid(config)
    assert config.max_batch_size == 0
    assert [list(tensor.dims) for tensor in config.input] == [[-1, -1], [-1, -1], [-1]]
    assert all(list(tensor.dims) == [1] for tensor in config.output if tensor.name == "loss")


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TENSORS = st.builds(
    Tensor,
    NAMES,
    st.sampled_from(["float32", "float16", "float64", "bool", "string", "int8", "uint8", "int64", "uint64"]),
    st.lists(st.one_of(st.integers(1, 4), st.just("batch"), st.none(), NAMES), max_size=4).map(tuple),
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    inputs=st.lists(TENSORS, min_size=1, max_size=3, unique_by=lambda tensor: tensor.name),
    outputs=st.lists(TENSORS, min_size=1, max_size=2, unique_by=lambda tensor: tensor.name),
    is_batched=st.booleans(),
    provider=st.sampled_from(["cpu", "cuda"]),
)
def test_any_signature_is_told_as_it_is(
    inputs: list[Tensor], outputs: list[Tensor], is_batched: bool, provider: str
) -> None:
    if is_batched:
        inputs, outputs = (
            [replace(own, shape=("batch", *own.shape[1:])) for own in tensors]
            for tensors in (inputs, outputs)
        )
    signature = Signature(tuple(inputs), tuple(outputs), 21, None)
    serving = replace(SERVING, provider=provider, sizes={"batch": 1})
    config = parsed(config_text(signature, serving))
    assert_valid(config)
    assert config.max_batch_size == (16 if signature.is_batched else 0)
    for own, told in zip((*inputs, *outputs), (*config.input, *config.output), strict=True):
        assert told.name == own.name
        dims = [dim if isinstance(dim, int) else -1 for dim in own.shape]
        assert shape_of(told, config) == (dims or [1])  # a scalar is told as one element
    request = first_request(signature, serving)
    for tensor in inputs if request else []:
        assert request is not None
        shape = request[tensor.name].shape
        assert len(shape) == len(tensor.shape)


def test_what_triton_does_not_take_is_refused() -> None:
    signature = replace(TEXTS, outputs=(Tensor("vector", "bfloat16", ("batch", 384)),))
    with pytest.raises(GraphError, match="'vector' is bfloat16"):
        config_text(signature, SERVING)
    for name in ("", "a/b", "..", "a b", "-x", "ä"):
        with pytest.raises(OutputError, match="no name of a model"):
            Serving(name, "cpu")
