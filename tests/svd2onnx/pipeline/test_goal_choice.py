"""Plans survive their JSON, and a wrong edit is told with the file and the layer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svd2onnx.pipeline.front_end import TracedSource
from svd2onnx.pipeline.goal_choice import read_plan
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.sources.source import Source
from svd2onnx.tracing.trace import trace
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import PLAN_FORMAT, CompressionPlan, LayerForm, LayerSite, QuantSpec

SITES = [
    LayerSite("table", "embedding", (160, 48)),
    LayerSite("first", "linear", (128, 64)),
    LayerSite("odd", "linear", (126, 64)),
    LayerSite("norm", "LayerNorm", (128,), skip_reason="LayerNorm layers are kept in float"),
]
PLAN = CompressionPlan(
    "auto",
    {
        "table": LayerForm(QuantSpec(2, 16)),
        "first": LayerForm(QuantSpec(2, 64), 32, QuantSpec(4, 32)),
        "odd": LayerForm(),
    },
    {"first": "why"},
    {"table": 0.1, "first": 0.2, "odd": 0.3},
)


@pytest.fixture
def prepared() -> Prepared:
    source = Source(nn.Identity, lambda _split: iter(()))
    network = trace(nn.Identity(), {"input": torch.zeros(2, 2)}, {})
    return Prepared(source, TracedSource(network, {}, {}), SITES, [])


def test_a_plan_survives_its_file(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.to_json(), indent=2))
    plan = read_plan(path, prepared)
    assert (plan.method, plan.forms) == ("auto", PLAN.forms)
    # An edit may have changed what they belonged to.
    assert plan.errors == {}


def form(name: str, **parts: Any) -> Callable[[dict[str, Any]], object]:
    """An edit that gives layer ``name`` other parts."""

    def edit(record: dict[str, Any]) -> None:
        record["layers"][name] = parts

    return edit


def spec(bits: Any, block_size: Any) -> dict[str, Any]:
    return {"bits": bits, "block_size": block_size}


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "unknown layer": (form("frist", dense=spec(4, 32)), ("'frist'", "svd2onnx inspect")),
    "skipped layer": (form("norm", dense=spec(4, 32)), ("'norm'", "no compressible layer")),
    "bits": (form("first", dense=spec(3, 32)), ("'first'", "bits must be one of")),
    "block": (form("first", dense=spec(4, 48)), ("'first'", "block size must be one of")),
    "text for bits": (form("first", dense=spec("4", 32)), ("'first'", "bits must be one of")),
    "bits with a point": (form("first", dense=spec(4.0, 32)), ("'first'", "whole numbers")),
    "block with a point": (form("first", dense=spec(4, 32.0)), ("'first'", "whole numbers")),
    "rank is true": (form("first", rank=True, factors=spec(4, 32)), ("'first'", "True")),
    "list for bits": (form("first", dense=spec([4], 32)), ("'first'", "bits must be one of")),
    "no block": (form("first", dense={"bits": 4}), ("'first'", "block_size")),
    "spec is a number": (form("first", dense=4), ("'first'",)),
    "spec has more": (form("first", dense=spec(4, 32) | {"zero": 1}), ("'first'", "zero")),
    "unknown part": (form("first", sparse=0.5), ("'first'", "sparse")),
    "rank without factors": (form("first", rank=32), ("'first'", "needs both a rank")),
    "factors without rank": (form("first", factors=spec(4, 32)), ("'first'", "needs both a rank")),
    "negative rank": (form("first", rank=-8, factors=spec(4, 32)), ("'first'", "needs both a rank")),
    "rank is text": (form("first", rank="many", factors=spec(4, 32)), ("'first'", "many")),
    "rank is a list": (form("first", rank=[8], factors=spec(4, 32)), ("'first'",)),
    "rank is broken": (form("first", rank=32.5, factors=spec(4, 32)), ("'first'", "32.5")),
    "rank too large": (form("first", rank=65, factors=spec(4, 32)), ("'first'", "rank exceeds 64")),
    "pair on a table": (form("table", rank=16, factors=spec(4, 16)), ("'table'", "no pair")),
    "nothing on a table": (form("table"), ("'table'", "dense term")),
    "blocks of a table": (form("table", dense=spec(4, 32)), ("'table'", "whole blocks of 32")),
    "2 bits of 126 outputs": (form("odd", dense=spec(2, 32)), ("'odd'", "multiple of 4")),
    "2 bits of rank 30": (form("first", rank=30, factors=spec(2, 32)), ("'first'", "multiple of 4")),
    "form is a list": (lambda record: record["layers"].update(first=[]), ("object",)),
    "layers is a list": (lambda record: record.update(layers=[]), ("object",)),
    "no layers": (lambda record: record.pop("layers"), ("object",)),
    "another format": (lambda record: record.update(format="plan/2"), (PLAN_FORMAT,)),
}


@pytest.mark.parametrize(("edit", "parts"), EDITS.values(), ids=EDITS)
def test_a_wrong_edit_is_told(
    prepared: Prepared, tmp_path: Path, edit: Callable[[dict[str, Any]], object], parts: tuple[str, ...]
) -> None:
    record = json.loads(json.dumps(PLAN.to_json()))
    edit(record)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(record))
    with pytest.raises(PlanError) as refused:
        read_plan(path, prepared)
    message = str(refused.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b"null", b'{"layers": {}}'],
    ids="empty words bytes deep list number null no-format".split(),
)
def test_what_is_no_plan_is_told(prepared: Prepared, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError) as refused:
        read_plan(path, prepared)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_plan_that_is_not_there_is_told(prepared: Prepared, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(PlanError, match=f"cannot read the plan {path}: "):
            read_plan(path, prepared)
