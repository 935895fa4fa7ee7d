"""Settings that contradict one another are refused; sizes are read as people write them."""

import math
import re
from dataclasses import asdict, replace
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
        ("15%", 150_000),
        (" 12.5 % ", 125_000),
        ("0.99X", 990_000),
        (" .5 x ", 500_000),
        ("12345", 12_345),
        ("1.5kb", 1_500),
        ("0.9 MB", 900_000),
        ("7B", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert target_bytes(text, 1_000_000) == expected


@pytest.mark.parametrize("text", ["", "x", "0x", "0", "-1MB", "0.1y", "1e6", "nan", "x10", "1 2", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="a size is a share such as"):
        target_bytes(text, 1_000_000)
    with pytest.raises(PlanError, match="a size is a share such as"):
        Settings(target_size=text)


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("target_size", "0.15", "0.15x"),
        ("target_size", ".5", ".5x"),
        ("target_size", "15", "15% or 15MB"),
        ("target_latency", "0.5", "0.5x"),
        ("target_latency", "12", "12ms"),
    ],
)
def test_a_number_without_its_unit_is_answered_by_what_may_be_meant(name: str, text: str, meant: str) -> None:
    with pytest.raises(PlanError, match=re.escape(f"did you mean {meant}?")):
        Settings(**{name: text})


@pytest.mark.parametrize("text", ["1x", "6x", "100%", "150 %"])
def test_a_share_of_all_is_refused_before_the_size_is_known(text: str) -> None:
    with pytest.raises(PlanError, match="nothing would be compressed"):
        Settings(target_size=text)


@pytest.mark.parametrize("text", ["1MB", "1000000", "2 GB"])
def test_bytes_of_the_float_file_are_refused_once_they_are_known(text: str) -> None:
    Settings(target_size=text)
    with pytest.raises(PlanError, match=r"not below the float32 file, which has 1,000,000 bytes"):
        target_bytes(text, 1_000_000)
    assert target_bytes(text, 3_000_000_000) > 0


@pytest.mark.parametrize("latency", ["", "soon", "1s", "0x", "nan"])
def test_what_is_no_latency_is_refused(latency: str) -> None:
    with pytest.raises(PlanError, match="a latency is a share of float32"):
        Settings(target_latency=latency)


@pytest.mark.parametrize("fidelity", [0.0, 1.0, 1.5, -1.0, math.nan])
def test_what_is_no_fidelity_is_refused(fidelity: float) -> None:
    with pytest.raises(PlanError, match="a fidelity lies between 0 and 1"):
        Settings(min_fidelity=fidelity)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"bits": 8}, "--bits"),
        ({"block_size": 32}, "--block-size"),
        ({"epsilon": 0.1}, "--epsilon"),
        ({"method": "quantize", "epsilon": 0.1}, "--epsilon"),
        ({"plan": Path("a.json"), "bits": 4}, "--bits"),
        ({"batch": 1}, "--batch"),
        ({"sequence": 128}, "--sequence"),
        ({"latency_table": Path("a.json")}, "--latency-table"),
        ({"method": "quantize", "batch": 8}, "--batch"),
    ],
    ids=lambda own: "+".join(own) if isinstance(own, dict) else "",
)
def test_what_would_have_no_effect_is_refused(settings: dict[str, Any], option: str) -> None:
    with pytest.raises(PlanError, match=f"^{option} has no effect with.*leave {option} out$"):
        Settings(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"method": "quantize"}, {"bits": 4, "block_size": 32}),
        ({"method": "svd", "bits": 8}, {"bits": 8, "block_size": 128, "epsilon": 0.1}),
        ({"target_latency": "0.5x", "batch": 4}, {"batch": 4, "sequence": 128}),
    ],
    ids=lambda own: "+".join(own),
)
def test_settings_hold_what_plays_a_part_and_nothing_else(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    record = asdict(Settings(**settings))
    names = ("bits", "block_size", "epsilon", "batch", "sequence")
    assert {name: record[name] for name in names if record[name] is not None} == expected
    assert replace(Settings(**settings), seed=1).seed == 1  # what is filled in is taken again


def test_latency_is_planned_for_the_sizes_given() -> None:
    assert Settings(target_latency="0.5x").sizes == {"batch": 1, "sequence": 128}
    assert Settings(target_latency="0.5x", batch=8, sequence=1).sizes == {"batch": 8, "sequence": 1}


def test_the_article_needs_data_and_a_bound() -> None:
    with pytest.raises(PlanError, match="measures each layer on calibration data"):
        Settings("svd", calibration_samples=0)
    for epsilon in (0.0, -1.0, math.nan):
        with pytest.raises(PlanError, match="--epsilon bounds a relative error"):
            Settings("svd", epsilon=epsilon)


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
    assert Settings("quantize", bits=bits).spec == QuantSpec(bits, block)
    assert Settings("svd", bits=bits, block_size=64).spec == QuantSpec(bits, 64)


@pytest.mark.parametrize("form", [{"operator": "folded"}, {"operator": "matmulnbits"}, {"dtype": "float16"}])
def test_int8_activations_are_a_form_of_their_own(form: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="--activations int8 is a form of its own"):
        Settings(activations="int8", **form)


@pytest.mark.parametrize(
    "name", ["method", "activations", "operator", "dtype", "bits", "block_size", "objective", "device"]
)
def test_an_unknown_choice_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(PlanError, match=r"must be one of .*, not 'other'"):
        Settings(**{name: "other"})


@pytest.mark.parametrize("form", [{"operator": "folded"}, {"dtype": "float16"}])
def test_latency_is_planned_for_fused_kernels_in_float32(form: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="--target-latency plans for fused kernels in float32"):
        Settings(target_latency="0.8x", **form)
    settings = Settings(target_latency="0.8x", operator="matmulnbits")
    assert settings.choice_of_activations("cpu") == ("float",)


@pytest.mark.parametrize(
    ("name", "least"), [("calibration_samples", 0), ("recover", 0), ("seed", 0), ("threads", 1), ("batch", 1)]
)
def test_numbers_that_are_too_small_are_refused(name: str, least: int) -> None:
    others = {"target_latency": "0.5x"} if name == "batch" else {}
    assert getattr(Settings(**{name: least}, **others), name) == least
    with pytest.raises(PlanError, match=f"must be at least {least}, not {least - 1}"):
        Settings(**{name: least - 1}, **others)


def test_from_python_a_text_is_a_path_and_one_of_several() -> None:
    settings = Settings(plan="p.json", cache="here", include="head", exclude=["a", "b"])
    assert (settings.plan, settings.cache) == (Path("p.json"), Path("here"))
    assert (settings.include, settings.exclude) == (("head",), ("a", "b"))
    assert Settings().plan is None


def test_a_goal_given_as_a_number_has_no_unit() -> None:
    with pytest.raises(PlanError, match=r"did you mean 0\.15x\?"):
        Settings(target_size=0.15)
    with pytest.raises(PlanError, match=r"did you mean 0\.5x\?"):
        Settings(target_latency=0.5)
