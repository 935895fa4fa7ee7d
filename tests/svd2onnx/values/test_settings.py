"""Settings that contradict one another are refused; sizes are read as people write them."""

from pathlib import Path
from typing import Any

import pytest

from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import QuantSpec
from svd2onnx.values.settings import Settings, target_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.15x", 150_000),
        ("1X", 1_000_000),
        (" .5 x ", 500_000),
        ("12345", 12_345),
        ("40MB", 40_000_000),
        ("1.5kb", 1_500),
        ("2 GB", 2_000_000_000),
        ("7B", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert target_bytes(text, 1_000_000) == expected


@pytest.mark.parametrize("text", ["", "x", "0x", "0", "-1MB", "0.1y", "1e6", "nan", "10%", "1 2", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="a size is a share such as"):
        target_bytes(text, 1_000_000)


@pytest.mark.parametrize(
    "goals",
    [
        {"target_size": "0.1x", "min_fidelity": 0.9},
        {"target_size": "0.1x", "plan": Path("a.json")},
        {"min_fidelity": 0.0, "plan": Path("a.json")},
    ],
    ids=lambda goals: "+".join(goals),
)
def test_two_goals_are_refused(goals: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="are different goals"):
        Settings(**goals)


@pytest.mark.parametrize("method", ["quantize", "svd"])
@pytest.mark.parametrize("goal", [{"target_size": "0.1x"}, {"min_fidelity": 0.9}, {"plan": Path("a.json")}])
def test_goals_belong_to_the_planner(method: str, goal: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=f"--method {method} has a rule of its own"):
        Settings(method=method, **goal)


def test_int8_is_chosen_where_time_counts_and_the_provider_has_it() -> None:
    assert Settings().choice_of_activations("cpu") == ("float",)
    assert Settings(target_latency="0.5x").choice_of_activations("cpu") == ("float", "int8")
    assert Settings(target_latency="0.5x").choice_of_activations("cuda") == ("float",)
    assert Settings(target_latency="0.5x", activations="float").choice_of_activations("cpu") == ("float",)
    assert Settings(activations="int8").choice_of_activations("cpu") == ("int8",)


def test_a_latency_belongs_to_the_planner() -> None:
    Settings(target_latency="0.5x", target_size="0.2x")
    Settings(target_latency="0.5x", min_fidelity=0.9)
    with pytest.raises(PlanError, match="leave it out"):
        Settings("quantize", target_latency="0.5x")
    with pytest.raises(PlanError, match="leave out --target-latency"):
        Settings(plan=Path("plan.json"), target_latency="0.5x")


@pytest.mark.parametrize(("bits", "block"), [(8, 128), (4, 32), (2, 32)])
def test_the_block_size_follows_the_bits_unless_given(bits: int, block: int) -> None:
    assert Settings(bits=bits).spec == QuantSpec(bits, block)
    assert Settings(bits=bits, block_size=64).spec == QuantSpec(bits, 64)


@pytest.mark.parametrize("form", [{"operator": "folded"}, {"operator": "matmulnbits"}, {"dtype": "float16"}])
def test_int8_activations_are_a_form_of_their_own(form: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="--activations int8 is a form of its own"):
        Settings(activations="int8", **form)


@pytest.mark.parametrize("name", ["method", "activations", "operator", "dtype"])
def test_an_unknown_choice_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(PlanError, match=r"must be one of .*, not 'other'"):
        Settings(**{name: "other"})


@pytest.mark.parametrize("form", [{"operator": "folded"}, {"dtype": "float16"}])
def test_latency_is_planned_for_fused_kernels_in_float32(form: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="--target-latency plans for fused kernels in float32"):
        Settings(target_latency="0.8x", **form)
    settings = Settings(target_latency="0.8x", operator="matmulnbits")
    assert settings.choice_of_activations("cpu") == ("float",)
