"""An objective is a kind, or an output and a kind."""

import pytest

from svd2onnx.values.errors import PlanError
from svd2onnx.values.objective import Objective, parse_objective
from svd2onnx.values.settings import Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl", Objective("kl")),
        ("boxes=mse", Objective("mse", "boxes")),
        ("a=b.0=cosine", Objective("cosine", "a=b.0")),
    ],
)
def test_it_is_a_kind_or_of_an_output(text: str, expected: Objective) -> None:
    assert parse_objective(text) == expected
    assert Settings(objective=text).objective == text


@pytest.mark.parametrize("text", ["", "boxes", "boxes=", "=mse", "boxes=l1", "mse=boxes", "boxes:mse"])
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(PlanError, match=r"must be one of .* not .*boxes=mse") as caught:
        Settings(objective=text)
    assert "\n" not in str(caught.value)
