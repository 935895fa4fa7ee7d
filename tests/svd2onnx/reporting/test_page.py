"""The page needs nothing but itself, escapes whatever a report holds, and says what the report says."""

import ast
import base64
import hashlib
import html
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from svd2onnx.cli.main import main
from svd2onnx.reporting.page import render
from svd2onnx.reporting.report import LatencyReport, LayerReport, Speed, read_report
from svd2onnx.reporting.terms import TERMS
from svd2onnx.values.errors import ReportError
from svd2onnx_runtime import Certificate, OutputFidelity
from tests.svd2onnx.reports import LAYERS, a_report

EVIL = '</style></title><script>alert(1)</script><img src=//evil.test/x onerror=alert(1)>"\' onload="alert(2)'


class Page(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.style = ""
        self.text = ""
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.text += f"{data.strip()} "


def assert_self_contained(page: Page) -> None:
    """No script, no handler, no inline style, no address, and one style sheet that its policy names."""
    for tag, attributes in page.tags:
        assert tag not in {"script", "img", "iframe", "link", "object", "embed", "base", "form", "a", "use"}
        for name in attributes:
            assert not name.startswith("on")
            assert name not in {"style", "src", "href", "xlink:href", "srcset", "action"}
    assert "url(" not in page.style
    assert "@import" not in page.style
    (policy,) = (own for tag, own in page.tags if own.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def poisoned(value: Any) -> Any:
    """``value`` with all of its text, keys too, made hostile; the objective, which is looked up, is kept."""
    if isinstance(value, str):
        return value if value in {"cosine", "svd2onnx-report/1"} else f"{EVIL}{value}"
    if isinstance(value, list):
        return [poisoned(own) for own in value]
    if isinstance(value, dict):
        return {name: poisoned(own) for name, own in value.items()}
    return value


def test_the_page_says_what_the_report_says() -> None:
    page = Page(render(a_report(machine="AMD EPYC")))
    assert_self_contained(page)
    for part in (
        "On AMD EPYC, cpu, onnxruntime 1.31.1",
        *(
            "minilm.onnx",
            "models/minilm.py",
            "11.70 MB",
            "13.0%",
            "90.30 MB",
            "0.9894",
            "256 held-out samples",
            "0.83",
        ),
        *("8.30 ms", "80.00 ms", "passed", "37 fused of 37", "inputs were taken as equal", "torch 2.13.0"),
        *("retrieval", "0.8100 / 0.8300", "int4/128", "0123456789abcdef" * 4, "calibration_samples: 0"),
        *(layer.name for layer in LAYERS),
        *("LayerNorm layers are kept in float", "30522\N{MULTIPLICATION SIGN}384"),
    ):
        assert part in page.text, part
    assert "plan: None" not in page.text


def test_each_output_is_listed_with_what_is_masked() -> None:
    outputs = (
        OutputFidelity("logits", "cosine", 0.9894, 0.0106, 0.12, ("-1e9",)),
        OutputFidelity("boxes", "mse", 0.75, 0.25),
    )
    deployed = replace(a_report().deployed, output="logits", outputs=outputs)
    strict = (replace(outputs[0], fidelity=0.9902), replace(outputs[1], fidelity=0.8125))
    report = a_report(deployed=deployed, strict_outputs=strict, measured_on="random inputs")
    text = " ".join(Page(render(report)).text.split())
    for part in (
        "256 random inputs on cpu",
        "of logits ), on random inputs 0.98940",
        "strict fidelity, on random inputs 0.99020",
        "output logits (cosine), deployed / strict 12% of its values are masked (-1e9) and left out "
        "0.98940 / 0.99020",
        "output boxes (mse), deployed / strict 0.75000 / 0.81250",
    ):
        assert part in text, (part, text)


def test_bars_are_of_the_right_length() -> None:
    layers = (
        LayerReport("large", "linear", (64, 64), "int8/128", 16_384, 4_096, None, 0.02),
        LayerReport("small", "linear", (64, 64), "rank 16 int8/32", 16_384, 1_024, None, 0.01, 16),
    )
    page = render(a_report(layers=layers, latency=()))
    rows = re.findall(r"<tr>\s*<td><span class=\"name\">(?:large|small).*?</tr>", page, re.DOTALL)
    widths = [re.findall(r'<rect width="([\d.]+)"', row) for row in rows]
    assert widths == [["100.00", "100.00", "25.00"], ["50.00", "25.00", "6.25", "25.00"]]


def test_layers_are_sorted_by_predicted_error_with_their_sum() -> None:
    page = Page(render(a_report()))
    places = [page.text.index(f"encoder.0.{name}") for name in ("output", "query", "key")]
    assert places == sorted(places)
    assert page.text.index("encoder.0.output") < page.text.index("embedding.table") < places[1]
    assert "They add up to 0.00701; times the gauge of 1.10" in page.text


def test_layers_that_stay_float_for_one_reason_take_one_line() -> None:
    norm = LAYERS[-1]
    norms = tuple(replace(norm, name=f"norm{i}") for i in range(12))
    page = Page(render(a_report(layers=(*LAYERS[:-1], *norms, replace(norm, name="other", note=None)))))
    assert page.text.count("LayerNorm layers are kept in float") == 1
    assert "12 \N{MULTIPLICATION SIGN} LayerNorm" in page.text
    assert ", ".join(f"norm{i}" for i in range(12)) in page.text
    assert "18.4 kB: LayerNorm layers" in page.text
    assert "1.5 kB: the plan leaves them as they are" in page.text


def test_a_long_table_unfolds_and_loses_no_layer() -> None:
    layers = tuple(replace(LAYERS[0], name=f"layer{i}.", predicted_error=i * 1e-3) for i in range(50))
    page = Page(render(a_report(layers=layers)))
    assert "The other 30 compressed layers" in page.text
    assert all(page.text.count(f"layer{i}.") == 1 for i in range(50))
    assert page.text.index("layer49.") < page.text.index("The other 30") < page.text.index("layer29.")


def test_forms_and_terms_are_explained_where_they_stand() -> None:
    page = Page(render(a_report()))
    titles = [own["title"] for tag, own in page.tags if tag == "abbr"]
    assert (
        "2-bit integers with one scale for each 64 weights, plus a low-rank pair of rank 32 in "
        "4-bit integers with one scale for each 32 weights"
    ) in titles
    used = {name for name, meaning in TERMS.items() if meaning in titles}
    assert {"fused", "deployed", "strict", "held out", "gauge", "objective", "predicted error"} <= used
    assert all(" ".join(meaning.split()) in page.text for meaning in TERMS.values()), "a phone cannot point"
    folded = Certificate("cpu", "1.31", 3, ("a",), (), ("b", "c"))
    assert "1 fused , 2 folded of 3" in Page(render(a_report(certificate=folded))).text


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_the_code_on_the_page_is_python_that_opens_the_file(provider: str) -> None:
    deployed = replace(a_report().deployed, provider=provider)
    output = 'folder/it\'s "new" </code>.onnx'
    code = code_of(render(a_report(output=output, deployed=deployed)))
    calls = [own for own in ast.walk(ast.parse(code[0])) if isinstance(own, ast.Call)]
    (opening,) = (own for own in calls if ast.unparse(own.func) == "ort.InferenceSession")
    assert ast.literal_eval(opening.args[0]) == output
    given = {own.arg: ast.literal_eval(own.value) for own in opening.keywords}
    assert given == ({"providers": ["CUDAExecutionProvider"]} if provider == "cuda" else {})
    for line in code[1].splitlines():
        program, command, *arguments = shlex.split(line)
        assert program == "svd2onnx"
        main.commands[command].make_context(command, list(arguments))
        assert arguments[0] == output


def test_when_and_how_it_was_made_is_said_where_it_is_known() -> None:
    command = "svd2onnx compress-export 'a b.py' -o <out>.onnx"
    page = render(a_report(created="2026-12-01T13:30:05+01:00", command=command))
    assert page.count("2026-12-01 12:30 UTC") == 2
    assert code_of(page)[-1] == command
    assert "UTC" not in render(a_report())
    assert "yesterday" in render(a_report(created="yesterday"))


def test_the_latency_is_said_as_a_ratio_of_times() -> None:
    text = Page(render(a_report())).text
    assert "Batch 8: 0.89 times float32's time (71.20 against 80.00 ms)" in text
    assert "float32's time at batch 1 (8.30 against 10.00 ms)" in text


def test_what_is_nearly_the_same_does_not_look_the_same() -> None:
    deployed = replace(a_report().deployed, fidelity=0.999988)
    latency = (LatencyReport(1, 0.0471, 0.0502, 0.94),)
    text = Page(render(a_report(deployed=deployed, latency=latency, strict_fidelity=1.0))).text
    assert "Fidelity 0.99999" in text
    assert "strict fidelity, on held-out samples 1.00000" in text
    assert "0.94 times float32's time (0.047 against 0.050 ms)" in text


def test_a_run_without_latency_says_so() -> None:
    assert "Not measured." in Page(render(a_report(latency=()))).text


def code_of(page: str) -> list[str]:
    """What stands in the page to be copied."""
    return [html.unescape(own) for own in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)]


def test_ranks_are_counted_together() -> None:
    pairs = tuple(
        replace(LAYERS[1], name=f"l{rank}", form=f"rank {rank} int4/32", rank=rank) for rank in (32, 64)
    )
    assert (
        "2 \N{MULTIPLICATION SIGN} linear low-rank pair int4/32" in Page(render(a_report(layers=pairs))).text
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"curve": (), "predicted_error": None, "choice": None},
        {"latency": (), "warnings": (), "layers": (), "versions": {}, "settings": {}},
        {"speed": Speed(0.4, 0.41, 0.42)},
        {"certificate": Certificate("cpu", "1.31.1", 0, (), ())},
    ],
    ids="unplanned bare timed float".split(),
)
def test_parts_that_a_run_has_not_are_left_out(changes: dict[str, Any]) -> None:
    page = Page(render(a_report(**changes)))
    assert_self_contained(page)
    charts = [own for tag, own in page.tags if tag == "svg" and "chart" in str(own.get("class"))]
    assert len(charts) == (0 if "curve" in changes else 2)


def test_a_failed_certificate_names_its_layers() -> None:
    certificate = Certificate(
        "cuda", "1.31", 2, ("a",), (("b", "reason <1>"),), (), (("Memcpy", "copies"),), ()
    )
    page = Page(render(a_report(certificate=certificate)))
    for part in ("failed", "b : reason <1>", "Memcpy : copies"):
        assert part in page.text


def test_text_of_a_tampered_report_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    speed, unfused = Speed(0.4, 0.41, 0.42), (("b", "reason"),)
    certificate = Certificate("cuda", "1.31", 2, ("a",), unfused, (), unfused, unfused)
    report = a_report(speed=speed, certificate=certificate, created="now", command="svd2onnx", machine="m")
    path.write_text(json.dumps(poisoned(json.loads(report.to_json()))))
    text = render(read_report(path))
    page = Page(text)
    assert_self_contained(page)
    assert "<script" not in text
    assert page.text.count("<script>alert(1)</script>") > 40


@pytest.mark.parametrize(
    "path",
    [
        ("float_bytes",),
        ("deployed", "fidelity"),
        ("layers", 0, "stored_bytes"),
        ("layers", 0, "shape"),
        ("latency", 0, "median_ms"),
        ("certificate", "unfused"),
        ("curve", 0, "predicted_error"),
        ("warnings",),
    ],
    ids=str,
)
def test_text_in_the_place_of_a_number_or_list_is_refused(tmp_path: Path, path: tuple[Any, ...]) -> None:
    with pytest.raises(ReportError, match=f"report.json is no report .*: Expected .*{path[0]}"):
        read_report(changed_report(tmp_path, path, EVIL))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("float_bytes",), 0),
        (("float_bytes",), 10**400),
        (("deployed", "fidelity"), float("nan")),
    ],
    ids="zero huge nan".split(),
)
def test_impossible_numbers_are_refused(tmp_path: Path, place: tuple[str, ...], value: float) -> None:
    path = changed_report(tmp_path, place, value)
    with pytest.raises(ReportError, match="impossible numbers"):
        render(read_report(path))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("file_bytes",), -1),
        (("predicted_error",), float("inf")),
        (("predicted_error",), float("nan")),
        (("deployed", "fidelity"), -1e300),
        (("layers", 0, "shape"), []),
        (("layers", 1, "rank"), -7),
        (("layers", 0, "float_bytes"), 0),
        (("layers", 0, "predicted_error"), float("nan")),
        (("latency", 0, "median_ms"), float("inf")),
    ],
    ids=str,
)
def test_odd_numbers_are_shown(tmp_path: Path, place: tuple[Any, ...], value: float) -> None:
    assert_self_contained(Page(render(read_report(changed_report(tmp_path, place, value)))))


def changed_report(folder: Path, place: tuple[Any, ...], value: Any) -> Path:
    """The file of a report with one value changed."""
    record = json.loads(a_report().to_json())
    inner = record
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path = folder / "report.json"
    path.write_text(json.dumps(record))
    return path


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(a_report().to_json())
    assert read_report(tmp_path / "report.json") == replace(
        a_report(), settings=json.loads(json.dumps(a_report().settings))
    )


def test_a_report_of_before_there_were_curves_is_read(tmp_path: Path) -> None:
    record = json.loads(a_report().to_json())
    for name in ("curve", "created", "command"):
        del record[name]
    for layer in record["layers"]:
        del layer["rank"]
    (tmp_path / "report.json").write_text(json.dumps(record))
    assert_self_contained(Page(render(read_report(tmp_path / "report.json"))))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot read the report"),
        (b"", "Expecting value"),
        (b"\xff\xfe\x00", "is no report"),
        (b"[]", "found 'list'"),
        (b"{}", "found None"),
        (b'{"format": "svd2onnx-plan/1"}', "found 'svd2onnx-plan/1'"),
        (b'{"format": "svd2onnx-report/1"}', "missing required field"),
        (b"[" * 100_000, "is no report"),
    ],
    ids="missing empty binary list object plan bare deep".split(),
)
def test_what_is_no_report_is_said_in_one_line(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReportError) as raised:
        read_report(path)
    message = str(raised.value)
    assert part in message
    assert str(path) in message
    assert "\n" not in message


def test_a_report_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.json").write_text(a_report().to_json())
    monkeypatch.setattr("svd2onnx.reporting.report._LARGEST", 1000)
    with pytest.raises(ReportError, match="more than 1,000 bytes"):
        read_report(tmp_path / "report.json")
