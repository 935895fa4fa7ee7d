"""The card has the hub's header, says what the report says, and escapes whatever that holds."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from svd2onnx.deployment.artifact import Artifact
from svd2onnx.deployment.card import card
from svd2onnx.graph.signature import Signature, Tensor
from svd2onnx.reporting.report import LayerReport
from svd2onnx.values.errors import ReportError
from tests.svd2onnx.reports import a_report

SIGNATURE = Signature(
    (Tensor("ids", "int64", ("batch", "sequence")),), (Tensor("y", "float32", ("batch", 8)),), 25, "0.1.0"
)
ARTIFACT = Artifact(Path("minilm.onnx"), None, SIGNATURE, a_report(machine="AMD EPYC"), None)
EVIL = "a`b|c\n# d <script>alert(1)</script> [x](http://evil.test) **e**"


def shown(text: str) -> str:
    """What a reader sees, without markup."""
    body = ModelCard(text).text
    tokens = MarkdownIt().enable("table").parse(body)
    return " ".join(child.content for token in tokens for child in token.children or ())


def test_the_header_is_one_of_the_hub() -> None:
    data = ModelCard(card(ARTIFACT, "minilm.onnx")).data
    assert data.library_name == "onnx"
    assert {"onnx", "onnxruntime", "svd2onnx"} <= set(data.tags or [])
    yaml.safe_load(data.to_yaml())


def test_the_card_says_what_the_report_says() -> None:
    text = shown(card(ARTIFACT, "minilm.onnx"))
    for part in (
        "13.0%", "11.70 MB", "90.30 MB", "0.9894", "0.9902", "retrieval", "8.30 ms", "0.83 of float32",
        "AMD EPYC", "onnxruntime 1.31.1", "passed: 37 fused of 37", "Opset 25", "ids int64 [batch, sequence]",
        "y float32 [batch, 8]", "0123456789abcdef" * 4, "torch 2.13.0", "no calibration data",
        "session.qdq_matmulnbits_accuracy_level", "sha256sum -c SHA256SUMS",
        "1 x linear: low-rank pair int4/32",
    ):  # fmt: skip
        assert part in text, part
    assert "oras" not in text
    assert not re.search(r"\n{4}|[ \t]\n", card(ARTIFACT, "minilm.onnx").replace("| |", ""))


def test_the_code_of_the_card_runs_as_python() -> None:
    text = card(ARTIFACT, 'odd "name".onnx')
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert 'odd \\"name\\".onnx' in code


@pytest.mark.parametrize(
    ("changes", "part", "other"),
    [
        ({"settings": {"operator": "folded"}}, "made floats", "accuracy_level"),
        ({"settings": {"operator": "matmulnbits"}}, "ORT_DISABLE_ALL", "accuracy_level"),
        (
            {"layers": (LayerReport("a", "linear", (4, 4), "int8/128, int8 activations", 64, 16),)},
            "1 layers compute in int8",
            "accuracy_level",
        ),
        ({"certificate": replace(a_report().certificate, unfused=(("m", "why"),))}, "failed", "passed"),
        ({"machine": None}, "a machine that the report does not name", "AMD"),
    ],
    ids=["folded", "matmulnbits", "int8", "unfused", "machine"],
)
def test_each_form_is_told_what_holds_for_it(changes: dict[str, object], part: str, other: str) -> None:
    artifact = replace(ARTIFACT, report=replace(ARTIFACT.report, **changes))
    text = shown(card(artifact, "minilm.onnx"))
    assert part in text
    assert other not in text


def test_the_files_for_a_registry_have_their_types() -> None:
    text = card(ARTIFACT, "minilm.onnx", {"minilm.onnx": "application/onnx", "a b.json": "application/json"})
    assert "minilm.onnx:application/onnx 'a b.json':application/json" in text
    assert "    oras push " in text


def test_what_a_report_holds_stays_text() -> None:
    report = a_report(
        data_sha256=EVIL,
        source=EVIL,
        output=EVIL,
        machine=EVIL,
        warnings=(EVIL,),
        settings={EVIL: EVIL, "threads": EVIL, "operator": EVIL},
        versions={"svd2onnx": EVIL, EVIL: EVIL},
        layers=(LayerReport(EVIL, EVIL, (4, 4), EVIL, 64, 16),),
    )
    signature = replace(SIGNATURE, inputs=(Tensor(EVIL, "int64", ("batch", EVIL)),))
    artifact = replace(ARTIFACT, report=report, signature=signature, data=Path(EVIL))
    text = card(artifact, EVIL, {EVIL.replace("\n", " "): "text/plain"})
    tokens = MarkdownIt().enable("table").parse(ModelCard(text).text)
    headings = [token for token in tokens if token.type == "heading_open"]
    assert [token.tag for token in headings] == ["h1", "h2", "h2"]
    children = [child.type for token in tokens for child in token.children or ()]
    assert not {"link_open", "html_inline"} & set(children)
    assert not any(token.type == "html_block" for token in tokens)


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ReportError, match="impossible numbers"):
        card(replace(ARTIFACT, report=a_report(float_bytes=0)), "minilm.onnx")
