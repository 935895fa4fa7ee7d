"""What tensors in any structure are called."""

import dataclasses
import enum
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from svd2onnx.network.outputs import names_of, tensors_of

A, B, C = torch.zeros(1), torch.ones(2), torch.ones(3)


class Pair(NamedTuple):
    logits: Any
    hidden: Any


@dataclasses.dataclass
class Result:
    loss: Any
    scores: Tensor


class Key(str, enum.Enum):  # noqa: UP042 - str() of its members is not their text
    LOGITS = "logits"


@pytest.mark.parametrize(
    ("result", "names", "tensors"),
    [
        (A, ["output"], [A]),
        ((A, B), ["output", "output_1"], [A, B]),
        ([None, A, 0.5, (B, "text", C)], ["output", "output_1", "output_2"], [A, B, C]),
        ({"b": A, "a": B}, ["b", "a"], [A, B]),
        (OrderedDict(logits=A, states=(B, [C])), ["logits", "states.0", "states.1.0"], [A, B, C]),
        ({"head": {"box": A, 7: B}}, ["head.box", "head.7"], [A, B]),
        (Pair(A, None), ["logits"], [A]),
        (Pair(A, Result(None, B)), ["logits", "hidden.scores"], [A, B]),
        (Result(1.0, A), ["scores"], [A]),
        ((A, {"logits": B}), ["output", "logits"], [A, B]),
        ([{"logits": A}, {"logits": B}, {"logits_1": C}], ["logits", "logits_1", "logits_1_1"], [A, B, C]),
        ({"": A}, ["output"], [A]),
        ({Key.LOGITS: A, 3: B}, ["logits", "3"], [A, B]),
        (None, [], []),
        ("text", [], []),
    ],
)
def test_names_are_keys_and_fields(result: Any, names: list[str], tensors: list[Tensor]) -> None:
    assert names_of(result) == names
    assert [id(tensor) for tensor in tensors_of(result)] == [id(tensor) for tensor in tensors]


def test_a_name_that_an_input_has_gets_a_number() -> None:
    assert names_of({"x": A, "x_1": B, "y": C}, taken=["x"]) == ["x_1", "x_1_1", "y"]


def test_containers_that_pytorch_knows_are_looked_into() -> None:
    transformers = pytest.importorskip("transformers")
    fields = transformers.modeling_outputs.BaseModelOutputWithPooling(last_hidden_state=A, attentions=(B, C))
    assert names_of(fields) == ["last_hidden_state", "attentions.0", "attentions.1"]
