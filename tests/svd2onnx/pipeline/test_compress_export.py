"""The whole story on small networks: what the report says is so, and a failure leaves nothing behind."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest

from svd2onnx.pipeline import final_report, goal_choice, preparation, statistics
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.pipeline.preparation import prepare
from svd2onnx.pipeline.statistics import gather_statistics
from svd2onnx.pipeline.timing import without_padding
from svd2onnx.reporting.report import CompressionReport
from svd2onnx.study.inspection import inspect_layers
from svd2onnx.values.errors import PlanError, SourceError, VerificationError
from svd2onnx.values.schema import PLAN_FORMAT
from svd2onnx.values.settings import Settings
from svd2onnx_runtime import open_session, run
from svd2onnx_runtime.latency_table import LatencyTable
from tests.svd2onnx.conftest import MODEL_FILE
from tests.svd2onnx.pipeline.conftest import do_not_time

Write = Callable[..., Path]

TRANSFORMER = """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.head = nn.Linear(64, 80)

    def forward(self, x):
        x = self.encoder(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])

def build():
    torch.manual_seed(0)
    return Network()

def inputs(split):
    torch.manual_seed(1)
    for length in (6, 9):
        yield {"x": torch.randn(4, length, 64)}

dynamic_shapes = {"x": {0: "batch", 1: "sequence"}}
"""


CONVOLUTIONS = """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32)
        self.body, self.other = nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 80)

    def forward(self, x):
        x = torch.relu_(self.norm(self.stem(x)))
        return self.head(torch.relu(self.other(self.body(x))).mean((2, 3)))

def build():
    torch.manual_seed(0)
    network = Network()
    for norm in (network.norm, network.other):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.running_mean)
    return network

def inputs(split):
    torch.manual_seed({"calibration": 1, "recovery": 2, "evaluation": 3}[split])
    for _ in range(3):
        yield {"x": torch.randn(8, 3, 13, 13)}

dynamic_shapes = {"x": {0: "batch"}}
"""


def test_the_report_is_what_was_written(model_file: Path, tmp_path: Path) -> None:
    output, reference = tmp_path / "out.onnx", tmp_path / "float.onnx"
    report = compress_export(
        model_file, output, Settings("quantize", bits=4, block_size=32, provider="cpu"), reference=reference
    )
    written = json.loads((tmp_path / "out.onnx.report.json").read_text())
    assert written == json.loads(report.to_json())
    assert written["format"] == "svd2onnx-report/1"
    assert datetime.now(UTC) - datetime.fromisoformat(written["created"]) < timedelta(hours=1)
    assert written["command"] is None
    assert written["file_bytes"] == output.stat().st_size
    assert written["float_bytes"] == reference.stat().st_size
    assert written["kept"] == pytest.approx(output.stat().st_size / reference.stat().st_size)
    assert written["kept"] + written["removed"] == pytest.approx(1)
    assert written["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert written["settings"]["bits"] == 4
    assert written["strict_relative_error"] < 1e-5
    assert 0.9 < written["deployed"]["fidelity"] < 1
    assert written["deployed"]["samples"] == 8 * 6 + 8 * 9
    assert set(written["deployed"]["metric"]) == {"positive"}
    assert written["certificate"]["planned"] == len(written["certificate"]["fused"]) == 2
    assert [latency["batch"] for latency in written["latency"]] == [1, 8]
    forms = {layer["name"]: layer["form"] for layer in written["layers"]}
    assert forms == {"table": "int4/32", "first": "int4/32", "second": "int4/32", "norm": "float"}
    stored = {layer["name"]: layer["stored_bytes"] for layer in written["layers"]}
    assert stored["first"] == 64 * 128 // 2 + 128 * 2 + 4  # codes, scales, and the unit of them all
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "float.onnx",
        "network.py",
        "out.onnx",
        "out.onnx.plan.json",
        "out.onnx.report.json",
    ]


@pytest.mark.usefixtures("no_bench")
@pytest.mark.parametrize(
    ("operator", "dtype"), [("folded", "float32"), ("matmulnbits", "float32"), ("matmulnbits", "float16")]
)
def test_each_form_is_checked_measured_and_certified(
    model_file: Path, tmp_path: Path, operator: str, dtype: str
) -> None:
    settings = Settings("quantize", operator=operator, dtype=dtype, provider="cpu")
    report = compress_export(model_file, tmp_path / "out.onnx", settings)
    assert report.strict_relative_error < 1e-5
    assert report.certificate.ok
    found = report.certificate.folded if operator == "folded" else report.certificate.fused
    assert len(found) == report.certificate.planned == 2
    assert report.deployed.fidelity > 0.98
    assert len(report.warnings) == (dtype == "float16")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".onnx") == ["out.onnx"]


def test_a_plan_with_int8_is_refused_in_a_form_that_cannot_hold_it(model_file: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    form = {"dense": {"bits": 4, "block_size": 32}, "activations": "int8"}
    plan.write_text(json.dumps({"format": PLAN_FORMAT, "layers": {"first": form}}))
    settings = Settings(plan=plan, operator="folded", provider="cpu")
    with pytest.raises(PlanError, match="'first' compute in int8, which --operator folded"):
        compress_export(model_file, tmp_path / "a.onnx", settings)


@pytest.mark.usefixtures("no_bench")
def test_a_layer_called_twice_is_counted_and_stored_once_where_weights_are_shared(
    write_model_file: Write, tmp_path: Path
) -> None:
    twice = "torch.relu(self.norm(self.first(self.second(self.norm(self.first(self.table(ids)))))))"
    source = write_model_file(("torch.relu(self.norm(self.first(self.table(ids))))", twice))
    reports = {
        operator: compress_export(
            source, tmp_path / "out.onnx", Settings("quantize", operator=operator, provider="cpu")
        )
        for operator in ("dequantize", "matmulnbits")
    }
    stored = {
        operator: {layer.name: layer.stored_bytes for layer in report.layers}
        for operator, report in reports.items()
    }
    for name in ("first", "second"):
        assert stored["dequantize"][name] == 2 * stored["matmulnbits"][name]
    saved = sum(stored["matmulnbits"][name] for name in ("first", "second"))
    assert reports["dequantize"].file_bytes - reports["matmulnbits"].file_bytes > 0.9 * saved
    assert [report.certificate.planned for report in reports.values()] == [4, 4]


@pytest.mark.usefixtures("no_bench")
def test_transformers_of_torch_are_compressed(write_model_file: Write, tmp_path: Path) -> None:
    """Their fast path reads weights around the modules, their attention packs them: all are compressed."""
    source = write_model_file(add=TRANSFORMER)
    report = compress_export(source, tmp_path / "out.onnx", Settings("quantize", bits=8, provider="cpu"))
    rows = {row.name: row for row in inspect_layers(source, Settings(), None)}
    forms = {layer.name: layer for layer in report.layers}
    for layer in (0, 1):
        for name in ("linear1", "linear2", "self_attn.in_proj", "self_attn.out_proj"):
            assert forms[f"encoder.layers.{layer}.{name}"].form == "int8/128"
            assert rows[f"encoder.layers.{layer}.{name}"].note is None
    assert forms["head"].form == "int8/128"
    assert forms["attention.in_proj"].form == "int8/128"
    assert report.certificate.ok
    assert report.certificate.planned == 11
    assert report.deployed.fidelity > 0.999


@pytest.mark.usefixtures("no_bench")
def test_convolutions_are_planned_with_their_normalization_folded(
    write_model_file: Write, tmp_path: Path
) -> None:
    source = write_model_file(add=CONVOLUTIONS)
    report = compress_export(source, tmp_path / "out.onnx", Settings(target_size="0.35x", provider="cpu"))
    forms = {layer.name: layer for layer in report.layers}
    assert set(forms) == {"stem", "body", "head"}, "normalization is left"
    assert forms["body"].kind == "convolution"
    assert "int" in forms["body"].form
    assert report.kept <= 0.35
    assert report.certificate.ok
    assert report.certificate.folded
    assert report.deployed.fidelity > 0.99
    assert report.strict_relative_error < 1e-5
    assert {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node} >= {
        "Conv",
        "Cast",
        "Reshape",
    }


@pytest.mark.usefixtures("no_bench")
def test_dynamic_dimensions_are_found_where_the_file_names_none(
    write_model_file: Write, tmp_path: Path
) -> None:
    source = write_model_file(('dynamic_shapes = {"ids": {0: "batch", 1: "sequence"}}', ""))
    compress_export(source, tmp_path / "out.onnx", Settings("quantize", provider="cpu"))
    session = open_session(tmp_path / "out.onnx", "cpu")
    for shape in ((1, 1), (3, 20)):
        (output,) = run(session, {"ids": np.ones(shape, np.int64)}).values()
        assert output.shape == (*shape, 64)


# The planner, on the same small network.


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompressionReport]:
    """(file, report) of one run for a size of 0.3 of the float32 file."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "network.py").write_text(MODEL_FILE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        do_not_time(monkeypatch)
        settings = Settings(target_size="0.3x", provider="cpu")
        return folder / "out.onnx", compress_export(folder / "network.py", folder / "out.onnx", settings)


def test_the_planned_file_has_the_size_asked_for(planned: tuple[Path, CompressionReport]) -> None:
    output, report = planned
    assert report.method in ("auto", "quantize")
    assert output.stat().st_size == report.file_bytes
    # Three layers leave few choices of size: within a tenth.
    assert 0.27 * report.float_bytes <= report.file_bytes <= 0.3 * report.float_bytes
    assert report.certificate.ok
    assert report.warnings == ()


def test_the_planned_file_is_predicted_and_not_worse_than_plain_quantization(
    planned: tuple[Path, CompressionReport],
) -> None:
    report = planned[1]
    assert report.predicted_error is not None
    assert report.choice is not None
    assert 0.5 < report.strict_error / report.predicted_error < 2
    assert report.choice.uniform_form.startswith("int")
    shipped = "quantize" if report.choice.uniform_wins else "auto"
    assert report.method == shipped
    priced = [layer.predicted_error for layer in report.layers if layer.form != "float"]
    assert all(error is not None and error > 0 for error in priced)
    assert sum(priced) * report.choice.gauge == pytest.approx(report.predicted_error)


def test_the_plan_beside_the_file_makes_the_same_file(
    planned: tuple[Path, CompressionReport], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_not_time(monkeypatch)
    output, report = planned
    settings = Settings(plan=Path(f"{output}.plan.json"), provider="cpu")
    again = compress_export(model_file, tmp_path / "again.onnx", settings)
    assert again.sha256 == report.sha256
    assert {layer.name: layer.form for layer in again.layers} == {
        layer.name: layer.form for layer in report.layers
    }
    # A plan may have been edited, so nothing is predicted and nothing else is shipped in its place.
    assert (again.predicted_error, again.choice) == (None, None)


@pytest.mark.usefixtures("no_bench")
def test_a_fidelity_is_reached_by_the_file_as_deployed(model_file: Path, tmp_path: Path) -> None:
    report = compress_export(model_file, tmp_path / "a.onnx", Settings(min_fidelity=0.97, provider="cpu"))
    assert report.deployed.fidelity >= 0.97
    assert report.file_bytes < 0.3 * report.float_bytes


@pytest.mark.usefixtures("no_bench")
def test_doing_without_data_is_told(model_file: Path, tmp_path: Path) -> None:
    settings = Settings(target_size="0.3x", calibration_samples=0, provider="cpu")
    report = compress_export(model_file, tmp_path / "a.onnx", settings)
    (warning,) = report.warnings
    assert warning.startswith("no calibration data")
    assert report.file_bytes <= 0.3 * report.float_bytes
    assert report.deployed.fidelity > 0.9


@pytest.mark.usefixtures("no_bench")
def test_a_layer_of_rank_zero_leaves_what_feeds_it_dead(model_file: Path, tmp_path: Path) -> None:
    """The exporter drops the table, whose rows nobody reads any more: that is no lost layer."""
    plan = tmp_path / "plan.json"
    spec = {"bits": 4, "block_size": 32}
    layers = {"table": {"dense": spec}, "first": {}, "second": {"dense": spec}}
    plan.write_text(json.dumps({"format": PLAN_FORMAT, "layers": layers}))
    report = compress_export(model_file, tmp_path / "a.onnx", Settings(plan=plan, provider="cpu"))
    assert {layer.name: layer.form for layer in report.layers} == {
        "table": "int4/32",
        "first": "rank 0",
        "second": "int4/32",
        "norm": "float",
    }
    session = open_session(tmp_path / "a.onnx", "cpu")
    (output,) = run(session, {"ids": np.ones((3, 4), np.int64)}).values()
    assert output.shape == (3, 4, 64)
    assert report.file_bytes < 0.2 * report.float_bytes


@pytest.mark.usefixtures("no_bench")
def test_what_retraining_gained_is_told(model_file: Path, tmp_path: Path) -> None:
    settings = Settings("quantize", bits=2, block_size=32, provider="cpu", recover=30)
    told = compress_export(model_file, tmp_path / "out.onnx", settings).retraining
    assert told is not None
    assert told.gained
    assert told.steps == 30
    assert told.after < told.before


@pytest.mark.usefixtures("no_bench")
def test_a_second_output_that_no_gradient_reaches_is_planned_too(
    write_model_file: Write, tmp_path: Path
) -> None:
    source = write_model_file(
        add="class Both(Network):\n    def __init__(self):\n        super().__init__()\n"
        "        self.other = nn.Linear(64, 64)\n"
        "    def forward(self, ids):\n        return super().forward(ids), self.other(self.table(ids))\n\n"
        "def build():\n    torch.manual_seed(0)\n    return Both()\n\nmetric = None\n",
    )
    report = compress_export(source, tmp_path / "a.onnx", Settings(target_size="0.3x", provider="cpu"))
    assert report.file_bytes <= 0.3 * report.float_bytes
    forms = {layer.name: layer.form for layer in report.layers}
    for layer in report.layers:
        assert (layer.rank is not None) == ("rank" in layer.form)
    planned = [point for point in report.curve if point.form is None]
    assert len(planned) > 10
    assert min(point.file_bytes for point in planned) < report.file_bytes < report.float_bytes
    assert {"int8/128", "int4/32"} <= {point.form for point in report.curve}
    # Its error is that of its weight, so it is not dropped although the first output would not mind.
    assert forms["other"] != "rank 0"


@pytest.mark.usefixtures("no_bench")
@pytest.mark.parametrize("operator", ["dequantize", "matmulnbits"])
def test_weights_in_a_file_beside_it(model_file: Path, tmp_path: Path, operator: str) -> None:
    whole = Settings("quantize", bits=4, operator=operator, provider="cpu")
    apart = replace(whole, external_data=True)
    expected = compress_export(model_file, tmp_path / "whole.onnx", whole)
    report = compress_export(model_file, tmp_path / "apart.onnx", apart)
    files = [tmp_path / name for name in ("apart.onnx", "apart.onnx.data")]
    assert report.file_bytes == sum(file.stat().st_size for file in files)
    assert files[0].stat().st_size < 0.4 * files[1].stat().st_size
    assert report.deployed == expected.deployed
    assert report.strict_relative_error == expected.strict_relative_error
    (tmp_path / "elsewhere").mkdir()
    moved = [file.rename(tmp_path / "elsewhere" / file.name) for file in files]
    run(open_session(moved[0], "cpu"), {"ids": np.ones((3, 4), np.int64)})


@pytest.mark.usefixtures("no_bench")
def test_a_latency_is_planned_for_and_measured(model_file: Path, tmp_path: Path) -> None:
    """A network so small takes what it takes: the limit is one that it keeps, and the table is kept too."""
    output = tmp_path / "a.onnx"
    settings = Settings(
        target_size="0.3x", target_latency="50x", batch=2, sequence=7, provider="cpu", threads=1
    )
    report = compress_export(model_file, output, settings)
    assert report.speed is not None
    assert report.speed.asked == 50
    assert 0 < report.speed.measured < 50
    assert 0 < report.speed.predicted < 50
    assert report.file_bytes <= 0.3 * report.float_bytes
    table = LatencyTable.from_json((tmp_path / "a.onnx.latency.json").read_text())
    assert {(key.kind, key.leading) for key in table.entries} == {("linear", (2, 7)), ("embedding", (2, 7))}
    assert any("int8 activations" in key.form for key in table.entries)
    again = replace(settings, target_size=None, latency_table=tmp_path / "a.onnx.latency.json")
    fast = compress_export(model_file, tmp_path / "b.onnx", again)
    # Of any size, at any speed: nothing is lost where nothing must be.
    assert fast.deployed.mean_error == pytest.approx(0, abs=1e-9)
    assert LatencyTable.from_json((tmp_path / "b.onnx.latency.json").read_text()) == table


@pytest.mark.usefixtures("no_bench")
def test_layers_with_int8_activations_are_planned_with_their_error(model_file: Path, tmp_path: Path) -> None:
    settings = Settings(target_size="0.3x", activations="int8", provider="cpu")
    report = compress_export(model_file, tmp_path / "a.onnx", settings)
    forms = {layer.name: layer.form for layer in report.layers}
    linear = [form for form in (forms["first"], forms["second"]) if form not in ("float", "rank 0")]
    assert linear
    assert all(form.endswith("int8 activations") for form in linear)
    assert report.predicted_error is not None
    assert 0.4 < report.deployed.mean_error / report.predicted_error < 2.5


def test_int8_in_a_plan_needs_the_cpu(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_not_time(monkeypatch)
    for owner in (goal_choice, preparation):
        monkeypatch.setattr(owner, "resolve_provider", lambda _provider: "cuda")
    plan = tmp_path / "plan.json"
    form = {"dense": {"bits": 4, "block_size": 32}, "activations": "int8"}
    plan.write_text(json.dumps({"format": PLAN_FORMAT, "layers": {"first": form}}))
    for settings in (Settings(plan=plan), Settings(activations="int8")):
        with pytest.raises(PlanError, match="int8 activations are for the CPU"):
            compress_export(model_file, tmp_path / "a.onnx", settings)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (Settings(target_size="0.01x"), "cannot be reached: the smallest has about"),
        (Settings(plan=Path("missing.json")), "cannot read the plan missing.json"),
        (Settings(target_latency="0.001x", provider="cpu"), "no plan is as fast as asked"),
        (Settings(target_latency="1x", latency_table=Path("missing.json")), "cannot read the latency table"),
    ],
    ids=["size", "plan", "latency", "table"],
)
def test_goals_that_cannot_be_met_leave_no_file(
    model_file: Path, tmp_path: Path, settings: Settings, part: str
) -> None:
    with pytest.raises(PlanError, match=part):
        compress_export(model_file, tmp_path / "a.onnx", settings)
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["network.py"]


@pytest.mark.parametrize("settings", [Settings(target_size="0.01x"), Settings(target_size="2KB")], ids=str)
def test_a_size_that_no_file_has_is_told_before_anything_is_calibrated(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(statistics, "calibrate", failing)
    with pytest.raises(PlanError, match="cannot be reached: the smallest has about"):
        compress_export(model_file, tmp_path / "a.onnx", settings)


def failing(*_: object, **__: object) -> None:
    raise VerificationError("the exported graph differs")


@pytest.mark.usefixtures("no_bench")
@pytest.mark.parametrize("step", ["check_strict", "certify"])
def test_a_failure_at_the_end_leaves_no_file_and_keeps_the_old_one(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "a.onnx"
    output.write_text("old")
    monkeypatch.setattr(final_report, step, failing)
    with pytest.raises(VerificationError):
        compress_export(
            model_file,
            output,
            Settings("quantize", provider="cpu"),
            reference=tmp_path / "out" / "float.onnx",
        )
    assert [path.name for path in output.parent.iterdir()] == ["a.onnx"]
    assert output.read_text() == "old"


def test_calibration_stops_at_the_samples_asked_for(write_model_file: Write) -> None:
    body = (
        "def inputs(split):\n"
        "    yield {'ids': torch.zeros(8, 6, dtype=torch.int64)}\n"
        "    yield {'ids': torch.zeros(8, 9, dtype=torch.int64)}\n"
        "    raise AssertionError('one batch too many')\n"
    )
    source = write_model_file(add=body)
    assert len(prepare(source, Settings(calibration_samples=8), None).batches) == 1
    assert len(prepare(source, Settings(calibration_samples=9), None).batches) == 2
    with pytest.raises(SourceError, match="one batch too many"):
        prepare(source, Settings(calibration_samples=17), None)


def test_probes_are_gathered_only_where_candidates_are_priced(model_file: Path) -> None:
    def probed(settings: Settings) -> bool:
        prepared = prepare(model_file, settings, None)
        return any(own.probes for own in gather_statistics(prepared).values())

    assert probed(Settings())
    assert not probed(Settings(method="quantize"))
    assert not probed(Settings(plan=Path("given.json")))


def test_nothing_to_compress_is_told(write_model_file: Write, tmp_path: Path) -> None:
    source = write_model_file(
        add="def build():\n    return Small()\n\n"
        "class Small(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.table = nn.Embedding(160, 8)\n"
        "    def forward(self, ids):\n        return self.table(ids)\n"
    )
    with pytest.raises(PlanError, match=r"none of the 1 layers can be compressed"):
        compress_export(source, tmp_path / "a.onnx", Settings(provider="cpu"))


@pytest.mark.usefixtures("no_bench")
def test_int8_arithmetic_is_certified_and_measured_and_leaves_the_strict_check(
    model_file: Path, tmp_path: Path
) -> None:
    settings = Settings("quantize", bits=4, activations="int8", provider="cpu")
    report = compress_export(model_file, tmp_path / "a.onnx", settings)
    plain = compress_export(model_file, tmp_path / "b.onnx", replace(settings, activations="float"))
    assert report.certificate.ok
    assert report.certificate.planned == plain.certificate.planned > 0
    assert report.strict_relative_error < 1e-5
    assert report.strict_error == pytest.approx(plain.strict_error, rel=1e-3)
    assert report.deployed.mean_error != plain.deployed.mean_error
    assert report.deployed.fidelity > 0.9
    operators = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert "DequantizeLinear" not in operators
    assert sorted(path.name for path in tmp_path.glob("a.onnx*")) == [
        "a.onnx",
        "a.onnx.plan.json",
        "a.onnx.report.json",
    ]


def test_an_unknown_method_or_arithmetic_is_refused() -> None:
    with pytest.raises(PlanError, match="not 'magic'"):
        Settings(method="magic")
    with pytest.raises(PlanError, match="not 'int3'"):
        Settings(activations="int3")


def test_padding_is_cut_before_timing() -> None:
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    ids, score = np.arange(8).reshape(2, 4), np.zeros(2)
    cut = without_padding({"ids": ids, "attention_mask": mask, "score": score})
    assert cut["ids"].tolist() == [[0, 1, 2], [4, 5, 6]]
    assert cut["attention_mask"].shape == (2, 3)
    assert cut["score"].shape == (2,)
    left = without_padding({"attention_mask": mask[:, ::-1], "ids": ids})
    assert left["ids"].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert without_padding({"ids": ids})["ids"] is ids
